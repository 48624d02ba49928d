// Threads of a block as fibres: who runs, who waits for whom, and what to say when nobody can go on.

#include "machine.h"

#include <cstring>
#include <sys/mman.h>

// Saves what a function must keep, changes the stack, and goes on where that was left.
extern "C" void alip_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl alip_switch
.hidden alip_switch
alip_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
constexpr unsigned SAVED = 6;
constexpr unsigned RETURN = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl alip_switch
.hidden alip_switch
alip_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
constexpr unsigned SAVED = 20;
constexpr unsigned RETURN = 11;
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

extern "C" {
__attribute__((visibility("default"))) uint3 alip_thread_index asm("threadIdx");
__attribute__((visibility("default"))) uint3 alip_block_index asm("blockIdx");
__attribute__((visibility("default"))) uint3 alip_block_size asm("blockDim");
__attribute__((visibility("default"))) uint3 alip_grid_size asm("gridDim");
}

namespace emulator {

Now now;

namespace {

constexpr size_t STACK = 256 * 1024;
constexpr size_t GUARD = 4096;
constexpr unsigned MOST_OPERANDS = 256;

Thread threads[MOST_THREADS];
unsigned count;
unsigned at_barrier, done;
void* scheduler;
const Loaded* kernel;
void* operands[MOST_OPERANDS];
std::vector<uint64_t> block_starts;
uint64_t epochs = FIRST_EPOCH;

void make_stacks() {
    if (now.stacks) return;
    now.stacks_bytes = STACK * MOST_THREADS;
    void* memory = mmap(nullptr, now.stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    now.stacks = reinterpret_cast<uintptr_t>(memory);
    for (unsigned thread = 0; thread < MOST_THREADS; ++thread)
        mprotect(static_cast<char*>(memory) + thread * STACK, GUARD, PROT_NONE);
}

void stamp() {
    const uint64_t order = now.order & 0xfffff, thread = now.thread;
    now.write_stamp = now.epoch << 32 | order << 11 | thread << 1;
    now.read_stamp = now.epoch << 32 | order << 12 | thread << 2 | ONE_THREAD;
}

/// What a thread sees of itself, when it runs and when its epoch or order has changed.
void become(unsigned thread) {
    now.thread = thread;
    now.order = threads[thread].order;
    alip_thread_index = {thread, 0, 0};
    stamp();
}

void next_epoch() {
    now.epoch = ++epochs;
}

void run(unsigned thread) {
    become(thread);
    alip_switch(&scheduler, threads[thread].stack_pointer);
}

void pause() {
    alip_switch(&threads[now.thread].stack_pointer, scheduler);
}

[[noreturn]] void finish() {
    threads[now.thread].wait = Wait::Done;
    ++done;
    pause();
    __builtin_unreachable();
}

void body() {
    kernel->kernel->call(operands);
    finish();
}

/// All threads that wait at barriers go on.
void release_barrier() {
    next_epoch();
    for (unsigned thread = 0; thread < count; ++thread) {
        threads[thread].order = 0;
        if (threads[thread].wait == Wait::Barrier) threads[thread].wait = Wait::Runs;
    }
    at_barrier = 0;
}

/// The lanes that wait for the same as this one.
unsigned lanes_with(unsigned warp, const WarpCall& call, WarpCall* lanes[WARP]) {
    unsigned present = 0;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        lanes[lane] = nullptr;
        const unsigned thread = warp * WARP + lane;
        if (thread >= count || threads[thread].wait != Wait::Warp) continue;
        WarpCall* other = threads[thread].call;
        if (other->resolve != call.resolve || other->line != call.line || other->mask != call.mask) continue;
        if (!(call.mask >> lane & 1)) continue;
        lanes[lane] = other;
        present |= 1u << lane;
    }
    return present;
}

void resolve(unsigned warp, WarpCall* const lanes[WARP]) {
    for (unsigned lane = 0; lane < WARP; ++lane)
        if (lanes[lane]) { lanes[lane]->resolve(lanes); break; }
    for (unsigned lane = 0; lane < WARP; ++lane)
        if (lanes[lane]) threads[warp * WARP + lane].wait = Wait::Runs;
}

std::string lane_list(unsigned mask) {
    std::string list;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(mask >> lane & 1)) continue;
        unsigned last = lane;
        while (last + 1 < WARP && (mask >> (last + 1) & 1)) ++last;
        if (!list.empty()) list += ", ";
        list += std::to_string(lane);
        if (last > lane) list += " to " + std::to_string(last);
        lane = last;
    }
    return list;
}

/// Nobody can go on: says why, and lets the first who waits have what there is.
void unblock() {
    for (unsigned thread = 0; thread < count; ++thread) {
        if (threads[thread].wait != Wait::Warp) continue;
        const WarpCall call = *threads[thread].call;
        const unsigned warp = thread / WARP;
        WarpCall* lanes[WARP];
        const unsigned present = lanes_with(warp, call, lanes);
        become(thread);
        Finding finding{};
        finding.kind = "lanes that never come";
        finding.line = call.line;
        finding.other_thread = -1;
        finding.more = std::string(call.what) + " waits for lanes " + lane_list(call.mask & ~present);
        report(finding);
        resolve(warp, lanes);
        return;
    }
    int first = -1;
    bool several = false;
    for (unsigned thread = 0; thread < count; ++thread) {
        if (threads[thread].wait != Wait::Barrier) continue;
        if (first < 0) first = static_cast<int>(thread);
        if (threads[thread].line != threads[first].line && !several) {
            several = true;
            become(static_cast<unsigned>(first));
            Finding finding{};
            finding.kind = "divergent barrier";
            finding.line = threads[first].line;
            finding.other_thread = static_cast<int>(thread);
            finding.more = "another thread of the block waits at line " + std::to_string(threads[thread].line);
            report(finding);
        }
    }
    if (first >= 0 && done > 0) {
        become(static_cast<unsigned>(first));
        Finding finding{};
        finding.kind = "divergent barrier";
        finding.line = threads[first].line;
        finding.other_thread = -1;
        finding.more = std::to_string(done) + " threads of the block have ended and never come";
        report(finding);
    }
    release_barrier();
}

void start_thread(unsigned thread) {
    Thread& self = threads[thread];
    auto* top = reinterpret_cast<uintptr_t*>(now.stacks + (thread + 1) * STACK - 64);
    // As after a call: the return address lies below a multiple of sixteen.
    uintptr_t* frame = top - SAVED - (SAVED % 2 == 0 ? 2 : 1);
    memset(frame, 0, SAVED * sizeof *frame);
    frame[RETURN] = reinterpret_cast<uintptr_t>(&body);
    self.stack_pointer = frame;
    self.wait = Wait::Runs;
    self.order = 0;
    self.copies.clear();
    self.group = 0;
}

void run_block() {
    next_epoch();
    now.block_start = now.epoch;
    block_starts.push_back(now.epoch);
    if (now.shared_bytes) poison_shared(kernel);
    at_barrier = done = 0;
    for (unsigned thread = 0; thread < count; ++thread) start_thread(thread);
    while (done < count) {
        bool any = false;
        // A warp goes as far as it can before the next one starts.
        for (unsigned first = 0; first < count; first += WARP) {
            bool again = true;
            while (again) {
                again = false;
                for (unsigned thread = first; thread < first + WARP && thread < count; ++thread) {
                    if (threads[thread].wait != Wait::Runs) continue;
                    run(thread);
                    again = any = true;
                }
            }
        }
        if (!any && done < count) unblock();
    }
}

} // namespace

void launch(const Loaded* what, const uint32_t grid[3], uint32_t block, void* const* given, uint32_t dynamic_bytes) {
    make_stacks();
    kernel = what;
    count = block;
    for (unsigned operand = 0; operand < what->kernel->operands && operand < MOST_OPERANDS; ++operand)
        operands[operand] = given[operand];
    alip_block_size = {block, 1, 1};
    alip_grid_size = {grid[0], grid[1], grid[2]};
    block_starts.clear();
    now.launch_start = epochs + 1;
    shared_of(what, dynamic_bytes);
    for (uint32_t z = 0; z < grid[2]; ++z)
        for (uint32_t y = 0; y < grid[1]; ++y)
            for (uint32_t x = 0; x < grid[0]; ++x) {
                alip_block_index = {x, y, z};
                run_block();
            }
}

void abandon() {
    finish();
}

void warp_call(WarpCall* call) {
    const unsigned thread = now.thread, warp = thread / WARP;
    Thread& self = threads[thread];
    call->mask |= 1u << thread % WARP;
    self.call = call;
    self.wait = Wait::Warp;
    WarpCall* lanes[WARP];
    if (lanes_with(warp, *call, lanes) == call->mask) {
        resolve(warp, lanes);
        become(thread);
    } else {
        pause();
    }
}

const Loaded* running() {
    return kernel;
}

bool holds_operands(uintptr_t address) {
    return address - reinterpret_cast<uintptr_t>(operands) < sizeof operands;
}

void* const* operands_of_launch(unsigned& number) {
    number = kernel->kernel->operands;
    return operands;
}

void block_of_epoch(uint64_t epoch, uint32_t block[3]) {
    size_t index = 0;
    while (index + 1 < block_starts.size() && block_starts[index + 1] <= epoch) ++index;
    block[0] = static_cast<uint32_t>(index % alip_grid_size.x);
    block[1] = static_cast<uint32_t>(index / alip_grid_size.x % alip_grid_size.y);
    block[2] = static_cast<uint32_t>(index / alip_grid_size.x / alip_grid_size.y);
}

} // namespace emulator

using namespace emulator;

extern "C" __attribute__((visibility("default"))) void alip_barrier(int line) {
    Thread& self = threads[now.thread];
    self.wait = Wait::Barrier;
    self.line = line;
    ++at_barrier;
    bool same = at_barrier == count;
    for (unsigned thread = 0; same && thread < count; ++thread) same = threads[thread].line == line;
    if (same) {
        const unsigned thread = now.thread;
        release_barrier();
        become(thread);
    } else {
        pause();
    }
}

extern "C" __attribute__((visibility("default"))) void alip_syncwarp(unsigned mask, int line) {
    WarpCall call{};
    call.resolve = [](WarpCall* const lanes[WARP]) {
        const unsigned warp = now.thread / WARP;
        unsigned order = 0;
        for (unsigned lane = 0; lane < WARP; ++lane)
            if (lanes[lane] && threads[warp * WARP + lane].order > order) order = threads[warp * WARP + lane].order;
        for (unsigned lane = 0; lane < WARP; ++lane)
            if (lanes[lane]) threads[warp * WARP + lane].order = order + 1;
    };
    call.mask = mask;
    call.line = line;
    call.what = "__syncwarp";
    warp_call(&call);
}

namespace {

/// Copies of groups before this one have landed when the wait is over.
void land(Thread& self, unsigned below) {
    size_t kept = 0;
    for (const Copy& copy : self.copies) {
        if (copy.group < below) {
            memcpy(reinterpret_cast<void*>(copy.target), copy.bytes, sizeof copy.bytes);
            stamp_shared(copy.target, sizeof copy.bytes, false);
        } else {
            self.copies[kept++] = copy;
        }
    }
    self.copies.resize(kept);
}

void misaligned(const void* address, int line) {
    Finding finding{};
    finding.kind = "misaligned access";
    finding.line = line;
    finding.address = reinterpret_cast<uintptr_t>(address);
    finding.bytes = 16;
    finding.shared = finding.address - now.shared < now.shared_bytes;
    finding.other_thread = -1;
    report(finding);
}

} // namespace

extern "C" __attribute__((visibility("default"))) void alip_copy_async(void* shared, const void* global, bool inside, int line) {
    const auto target = reinterpret_cast<uintptr_t>(shared), source = reinterpret_cast<uintptr_t>(global);
    if (target % 16) misaligned(shared, line);
    if (inside && source % 16) misaligned(global, line);
    check_access(target, 16, true, 0, line);
    Copy copy{};
    copy.target = target;
    copy.group = threads[now.thread].group;
    if (inside) {
        check_access(source, 16, false, 0, line);
        memcpy(copy.bytes, global, sizeof copy.bytes);
    }
    memset(shared, 0xff, 16);
    stamp_shared(target, 16, true);
    threads[now.thread].copies.push_back(copy);
}

extern "C" __attribute__((visibility("default"))) void alip_copy_commit(void) {
    ++threads[now.thread].group;
}

extern "C" __attribute__((visibility("default"))) void alip_copy_wait(unsigned groups, int) {
    Thread& self = threads[now.thread];
    if (self.group >= groups) land(self, self.group - groups);
}
