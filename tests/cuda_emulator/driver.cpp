// A stand-in of NVIDIA's driver on top of the emulator, for tests of the runtime's device: what that calls, and nothing else.
//
// Work of a stream is done as late as the calls allow: when somebody waits for it, or asks. So whoever forgets to wait, or to
// order two streams, gets wrong numbers every time. What a real card would do is asked for by environment variables:
//   ALIP_STANDIN_DRIVER      the driver's version, as 12040
//   ALIP_STANDIN_CAPABILITY  the cards' compute capability, as 90
//   ALIP_STANDIN_CARDS       how many there are
//   ALIP_STANDIN_MEMORY      bytes of each
//   ALIP_STANDIN_REFUSE      the launch, counted from 1, that is refused when it is submitted
//   ALIP_STANDIN_COPY        the upload, counted from 1, that is refused when it is submitted
//   ALIP_STANDIN_FAIL        the launch that fails while it runs, and every call after it
//   ALIP_STANDIN_LOSE        the launch during which the card is lost
//   ALIP_STANDIN_REPORTS     a file to which the emulator's reports are added; PATH.launches says how many launches have run

#include "machine.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unistd.h>

#define CU extern "C" __attribute__((visibility("default"))) int

namespace {

using namespace emulator;

enum : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    ECC_UNCORRECTABLE = 214,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
    CAPTURE_WRONG_THREAD = 908,
};

uint64_t setting(const char* name, uint64_t otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

using Work = std::function<int()>;

/// What is being recorded of a stream.
struct Capture {
    std::thread::id thread;
    bool prohibits, invalid;
    std::vector<Work> work;
};

struct Stream {
    std::deque<Work> work;
    std::unique_ptr<Capture> capture;
};

struct Graph {
    std::vector<Work> work;
};

struct GraphExec {
    std::shared_ptr<const std::vector<Work>> work;
};

/// A moment of a stream: what an event stood for when it was recorded.
struct Moment {
    Stream* stream;
    bool done;
    std::chrono::steady_clock::time_point when;
};

struct Event {
    bool timed;
    std::shared_ptr<Moment> moment;
};

struct Function {
    const Loaded* kernel;
    int dynamic_bytes = 48 << 10;
};

struct CudaModule {
    Module* module;
    std::string path;
    std::deque<Function> functions;
};

std::recursive_mutex lock;
bool initialized;
int failed = SUCCESS;
uint64_t submitted, uploaded, run_launches;
std::map<uintptr_t, uint64_t> card_memory;
std::map<uintptr_t, uint64_t> pinned;
std::map<Stream*, bool> streams;
thread_local uintptr_t current;

uint64_t taken() {
    uint64_t bytes = 0;
    for (const auto& [address, length] : card_memory) bytes += length;
    return bytes;
}

uint64_t capacity() {
    return setting("ALIP_STANDIN_MEMORY", 8ull << 30);
}

/// What a call that needs a context says before anything else.
int ready() {
    if (!initialized) return NOT_INITIALIZED;
    if (!current) return INVALID_CONTEXT;
    return failed;
}

/// What a call says that may not be made while this thread records: it waits, or might. The recording is lost.
int unsafe_now() {
    int result = SUCCESS;
    for (const auto& [stream, alive] : streams) {
        Capture* capture = stream->capture.get();
        if (!capture || !capture->prohibits || capture->thread != std::this_thread::get_id()) continue;
        capture->invalid = true;
        result = CAPTURE_UNSUPPORTED;
    }
    return result;
}

/// Adds work to a stream, or to what is recorded of it.
int submit(Stream* stream, Work work) {
    Capture* capture = stream->capture.get();
    if (!capture) {
        stream->work.push_back(std::move(work));
        return SUCCESS;
    }
    if (capture->invalid) return CAPTURE_INVALIDATED;
    capture->work.push_back(std::move(work));
    return SUCCESS;
}

/// Says that a call failed which was to be recorded: so has the recording.
int refuse(Stream* stream, int why) {
    if (stream->capture) stream->capture->invalid = true;
    return why;
}

/// Does a stream's work until a moment has come, or all of it.
int drain(Stream* stream, const Moment* until) {
    while (!stream->work.empty() && !(until && until->done)) {
        if (failed) return failed;
        const auto next = std::move(stream->work.front());
        stream->work.pop_front();
        const int result = next();
        if (result) return failed = result;
    }
    return failed;
}

int drain_all() {
    for (const auto& [stream, alive] : streams)
        if (const int result = drain(stream, nullptr)) return result;
    return failed;
}

/// Whether bytes lie within one piece of a kind of memory.
bool within(const std::map<uintptr_t, uint64_t>& pieces, uintptr_t address, uint64_t bytes) {
    auto next = pieces.upper_bound(address);
    if (next == pieces.begin()) return false;
    const auto& [begin, length] = *std::prev(next);
    return address + bytes <= begin + length;
}

void add(const std::string& path, const char* mode, const std::string& text) {
    if (FILE* file = fopen(path.c_str(), mode)) {
        fputs(text.c_str(), file);
        fclose(file);
    }
}

void write_reports() {
    const std::string reports = take_reports();
    const char* path = getenv("ALIP_STANDIN_REPORTS");
    if (!path) return;
    if (!reports.empty()) add(path, "a", reports);
    add(std::string(path) + ".launches", "w", std::to_string(run_launches));
}

/// Runs a launch, unless it is the one that fails.
int launched(const std::function<void()>& run) {
    ++run_launches;
    if (run_launches == setting("ALIP_STANDIN_FAIL", 0)) return LAUNCH_FAILED;
    if (run_launches == setting("ALIP_STANDIN_LOSE", 0)) return ECC_UNCORRECTABLE;
    run();
    write_reports();
    return SUCCESS;
}

std::string own_folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&own_folder), &info);
    const std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

} // namespace

#define LOCKED const std::lock_guard<std::recursive_mutex> guard(lock)
#define READY                          \
    LOCKED;                            \
    if (const int wrong = ready()) return wrong
#define READY_TO_WAIT                  \
    READY;                             \
    if (const int wrong = unsafe_now()) return wrong

CU cuInit(unsigned) {
    LOCKED;
    initialized = true;
    return SUCCESS;
}

CU cuDriverGetVersion(int* version) {
    *version = static_cast<int>(setting("ALIP_STANDIN_DRIVER", 12080));
    return SUCCESS;
}

CU cuDeviceGetCount(int* count) {
    if (!initialized) return NOT_INITIALIZED;
    *count = static_cast<int>(setting("ALIP_STANDIN_CARDS", 1));
    return SUCCESS;
}

CU cuDeviceGet(int* device, int ordinal) {
    int count = 0;
    if (const int wrong = cuDeviceGetCount(&count)) return wrong;
    if (ordinal < 0 || ordinal >= count) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CU cuDeviceGetName(char* name, int room, int device) {
    snprintf(name, static_cast<size_t>(room), "stand-in %d", device);
    return SUCCESS;
}

CU cuDeviceGetAttribute(int* value, int attribute, int) {
    const auto capability = static_cast<int>(setting("ALIP_STANDIN_CAPABILITY", 90));
    switch (attribute) {
    case 75: *value = capability / 10; return SUCCESS; // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = capability % 10; return SUCCESS; // COMPUTE_CAPABILITY_MINOR
    case 97: *value = DYNAMIC_BYTES; return SUCCESS;   // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 16: *value = 132; return SUCCESS;             // MULTIPROCESSOR_COUNT
    default: return INVALID_VALUE;
    }
}

CU cuDevicePrimaryCtxRetain(void** context, int device) {
    LOCKED;
    if (!initialized) return NOT_INITIALIZED;
    *context = reinterpret_cast<void*>(static_cast<uintptr_t>(device) + 1);
    return failed;
}

CU cuDevicePrimaryCtxRelease_v2(int) {
    return SUCCESS;
}

CU cuCtxSetCurrent(void* context) {
    current = reinterpret_cast<uintptr_t>(context);
    return SUCCESS;
}

CU cuMemGetInfo_v2(size_t* free, size_t* total) {
    READY;
    *total = capacity();
    *free = capacity() - taken();
    return SUCCESS;
}

CU cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    READY_TO_WAIT;
    if (bytes == 0) return INVALID_VALUE;
    if (taken() + bytes > capacity()) return OUT_OF_MEMORY;
    void* memory = alloc(bytes, NEVER_WRITTEN);
    if (!memory) return OUT_OF_MEMORY;
    *address = reinterpret_cast<uint64_t>(memory);
    card_memory[*address] = bytes;
    return SUCCESS;
}

CU cuMemFree_v2(uint64_t address) {
    READY_TO_WAIT;
    if (!card_memory.count(address)) return INVALID_VALUE;
    if (const int wrong = drain_all()) return wrong;
    card_memory.erase(address);
    release(reinterpret_cast<void*>(address));
    return SUCCESS;
}

CU cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    READY_TO_WAIT;
    *memory = malloc(bytes);
    if (!*memory) return OUT_OF_MEMORY;
    memset(*memory, 0xee, bytes);
    pinned[reinterpret_cast<uintptr_t>(*memory)] = bytes;
    return SUCCESS;
}

CU cuMemFreeHost(void* memory) {
    READY_TO_WAIT;
    if (!pinned.erase(reinterpret_cast<uintptr_t>(memory))) return INVALID_VALUE;
    if (const int wrong = drain_all()) return wrong;
    free(memory);
    return SUCCESS;
}

CU cuStreamCreate(Stream** stream, unsigned) {
    READY;
    *stream = new Stream;
    streams[*stream] = true;
    return SUCCESS;
}

CU cuStreamDestroy_v2(Stream* stream) {
    LOCKED;
    if (!streams.count(stream)) return INVALID_HANDLE;
    const int result = drain(stream, nullptr);
    streams.erase(stream);
    delete stream;
    return result;
}

CU cuStreamBeginCapture_v2(Stream* stream, int mode) {
    READY;
    if (!stream) return CAPTURE_UNSUPPORTED; // the legacy stream
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    if (stream->capture) return refuse(stream, ILLEGAL_STATE);
    // RELAXED prohibits nothing.
    stream->capture.reset(new Capture{std::this_thread::get_id(), mode != 2, false, {}});
    return SUCCESS;
}

CU cuStreamEndCapture(Stream* stream, Graph** graph) {
    READY;
    *graph = nullptr;
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (!stream->capture) return ILLEGAL_STATE;
    if (stream->capture->prohibits && stream->capture->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
    const auto capture = std::move(stream->capture);
    if (capture->invalid) return CAPTURE_INVALIDATED;
    *graph = new Graph{std::move(capture->work)};
    return SUCCESS;
}

CU cuGraphInstantiateWithFlags(GraphExec** made, Graph* graph, unsigned long long flags) {
    READY;
    if (flags) return INVALID_VALUE;
    *made = new GraphExec{std::make_shared<const std::vector<Work>>(graph->work)};
    return SUCCESS;
}

CU cuGraphLaunch(GraphExec* graph, Stream* stream) {
    READY;
    if (!streams.count(stream)) return INVALID_HANDLE;
    const auto all = graph->work;
    return submit(stream, [all] {
        for (const Work& work : *all)
            if (const int result = work()) return result;
        return static_cast<int>(SUCCESS);
    });
}

CU cuGraphDestroy(Graph* graph) {
    LOCKED;
    delete graph;
    return SUCCESS;
}

CU cuGraphExecDestroy(GraphExec* graph) {
    LOCKED;
    delete graph;
    return SUCCESS;
}

CU cuStreamSynchronize(Stream* stream) {
    READY_TO_WAIT;
    return streams.count(stream) ? drain(stream, nullptr) : INVALID_HANDLE;
}

CU cuEventCreate(Event** event, unsigned flags) {
    READY;
    *event = new Event{!(flags & 2), nullptr}; // DISABLE_TIMING
    return SUCCESS;
}

CU cuEventDestroy_v2(Event* event) {
    LOCKED;
    delete event;
    return SUCCESS;
}

CU cuEventRecord(Event* event, Stream* stream) {
    READY;
    if (!streams.count(stream)) return INVALID_HANDLE;
    const auto moment = std::make_shared<Moment>(Moment{stream, false, {}});
    event->moment = moment;
    return submit(stream, [moment] {
        moment->done = true;
        moment->when = std::chrono::steady_clock::now();
        return SUCCESS;
    });
}

CU cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    READY;
    for (const Event* event : {start, end}) {
        if (!event->timed || !event->moment) return INVALID_HANDLE;
        if (!event->moment->done) return NOT_READY;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end->moment->when - start->moment->when).count();
    return SUCCESS;
}

CU cuEventQuery(Event* event) {
    READY_TO_WAIT;
    const auto moment = event->moment;
    return !moment || moment->done ? SUCCESS : drain(moment->stream, moment.get());
}

CU cuEventSynchronize(Event* event) {
    return cuEventQuery(event);
}

CU cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    READY;
    if (!streams.count(stream)) return INVALID_HANDLE;
    // It may be recorded again or destroyed later.
    const auto moment = event->moment;
    // What is recorded cannot wait for what is not.
    if (moment && stream->capture) return refuse(stream, CAPTURE_ISOLATION);
    if (!moment || moment->done) return SUCCESS;
    return submit(stream, [moment] { return moment->done ? static_cast<int>(SUCCESS) : drain(moment->stream, moment.get()); });
}

CU cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, Stream* stream) {
    READY;
    if (!within(card_memory, address, bytes)) return INVALID_VALUE;
    return submit(stream, [=] {
        memset(reinterpret_cast<void*>(address), value, bytes);
        define(reinterpret_cast<void*>(address), bytes);
        return SUCCESS;
    });
}

CU cuMemcpyHtoDAsync_v2(uint64_t address, const void* from, size_t bytes, Stream* stream) {
    READY;
    if (++uploaded == setting("ALIP_STANDIN_COPY", 0)) return INVALID_VALUE;
    if (!within(card_memory, address, bytes)) return INVALID_VALUE;
    const auto copy = [=](const void* source) {
        memcpy(reinterpret_cast<void*>(address), source, bytes);
        define(reinterpret_cast<void*>(address), bytes);
        return SUCCESS;
    };
    if (within(pinned, reinterpret_cast<uintptr_t>(from), bytes)) {
        return submit(stream, [=] { return copy(from); });
    }
    const std::string kept(static_cast<const char*>(from), bytes);
    return submit(stream, [=] { return copy(kept.data()); });
}

CU cuMemcpyDtoHAsync_v2(void* to, uint64_t address, size_t bytes, Stream* stream) {
    READY;
    if (!within(card_memory, address, bytes)) return INVALID_VALUE;
    const bool later = within(pinned, reinterpret_cast<uintptr_t>(to), bytes);
    // What has to wait cannot be recorded.
    if (!later && stream->capture) return refuse(stream, CAPTURE_UNSUPPORTED);
    const int result = submit(stream, [=] {
        memcpy(to, reinterpret_cast<const void*>(address), bytes);
        return SUCCESS;
    });
    return later || result ? result : drain(stream, nullptr);
}

CU cuModuleLoadData(CudaModule** made, const void* image) {
    READY;
    // As nvrtc.cpp writes it: a mark, the length, a library.
    uint64_t length;
    if (memcmp(image, "standin\0", 8) != 0) return INVALID_IMAGE;
    memcpy(&length, static_cast<const char*>(image) + 8, sizeof length);
    std::string path = own_folder() + "/module-XXXXXX";
    const int file = mkstemp(&path[0]);
    if (file < 0) return NOT_FOUND;
    const bool whole = write(file, static_cast<const char*>(image) + 16, length) == static_cast<ssize_t>(length);
    close(file);
    std::string why = "it could not be written";
    Module* module = whole ? load(path.c_str(), why) : nullptr;
    if (!module) {
        fprintf(stderr, "%s: %s\n", path.c_str(), why.c_str());
        return INVALID_IMAGE;
    }
    *made = new CudaModule{module, path, {}};
    return SUCCESS;
}

CU cuModuleUnload(CudaModule* module) {
    LOCKED;
    drain_all();
    unload(module->module);
    unlink(module->path.c_str());
    delete module;
    return failed;
}

CU cuModuleGetFunction(Function** function, CudaModule* module, const char* name) {
    READY;
    std::string why;
    const Loaded* kernel = find(module->module, name, why);
    if (!kernel) return NOT_FOUND;
    module->functions.push_back(Function{kernel});
    *function = &module->functions.back();
    return SUCCESS;
}

CU cuFuncSetAttribute(Function* function, int attribute, int value) {
    READY;
    if (attribute != 8 || value < 0 || value > static_cast<int>(DYNAMIC_BYTES)) return INVALID_VALUE;
    function->dynamic_bytes = value;
    return SUCCESS;
}

CU cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y, unsigned threads_z,
                  unsigned shared_bytes, Stream* stream, void** parameters, void** extra) {
    READY;
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (++submitted == setting("ALIP_STANDIN_REFUSE", 0)) return refuse(stream, LAUNCH_OUT_OF_RESOURCES);
    if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535 || threads == 0 || threads > MOST_THREADS || threads_y != 1 ||
        threads_z != 1 || extra || shared_bytes > static_cast<unsigned>(function->dynamic_bytes) ||
        threads > function->kernel->kernel->block)
        return refuse(stream, INVALID_VALUE);
    std::vector<void*> operands;
    for (unsigned operand = 0; operand < function->kernel->kernel->operands; ++operand)
        operands.push_back(*static_cast<void**>(parameters[operand]));
    return submit(stream, [=] {
        return launched([=] {
            const uint32_t grid[3] = {x, y, z};
            launch(function->kernel, grid, threads, operands.data(), shared_bytes);
        });
    });
}

/// Queues a library's work as a launch, which a graph may do many times; 0 if it was taken. It is discarded here.
CU standin_submit(Stream* stream, void (*work)(void*), void (*discard)(void*), void* with) {
    READY;
    const std::shared_ptr<void> kept(with, discard);
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (++submitted == setting("ALIP_STANDIN_REFUSE", 0)) return refuse(stream, LAUNCH_OUT_OF_RESOURCES);
    return submit(stream, [=] { return launched([=] { work(kept.get()); }); });
}

namespace {

struct Error {
    int code;
    const char *name, *meaning;
};
const Error ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
};

int describe(int code, const char** text, const char* Error::*which) {
    for (const Error& error : ERRORS) {
        if (error.code != code) continue;
        *text = error.*which;
        return SUCCESS;
    }
    *text = nullptr;
    return INVALID_VALUE;
}

} // namespace

CU cuGetErrorName(int code, const char** text) {
    return describe(code, text, &Error::name);
}

CU cuGetErrorString(int code, const char** text) {
    return describe(code, text, &Error::meaning);
}
