// Memory of the card and what is known of every two bytes of it: the hooks of -fsanitize=thread and -fsanitize=alignment.
//
// Allocations lie far apart in a reserved range, so that what leaves one falls between them. A thread that leaves that range
// too goes no further, since its access would end the process.

#include "machine.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <sys/mman.h>

#define HOOK extern "C" __attribute__((visibility("default")))
#define CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))

namespace emulator {

namespace {

constexpr uint64_t RESERVED = 64ull << 30;
constexpr uint64_t GAP = 1 << 20;
constexpr uint64_t PAGE = 4096;
constexpr int POISON = 0xff;

std::map<uintptr_t, uint64_t> allocations;
uint64_t used;
std::vector<Cell> shared_cells;

uint64_t pages(uint64_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

void* reserve(uint64_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

Cell* cells_of(uintptr_t address) {
    return now.global_cells + (address - now.global) / 2;
}

} // namespace

void* alloc(uint64_t bytes, uint64_t state) {
    if (!now.global) {
        now.global = reinterpret_cast<uintptr_t>(reserve(RESERVED));
        now.global_cells = static_cast<Cell*>(reserve(RESERVED / 2 * sizeof(Cell)));
        if (!now.global || !now.global_cells) return nullptr;
        now.global_bytes = RESERVED;
    }
    const uint64_t begin = used + GAP, end = begin + pages(bytes);
    if (end + GAP > RESERVED) return nullptr;
    used = end;
    const uintptr_t address = now.global + begin;
    allocations[address] = bytes;
    Cell* cells = cells_of(address);
    for (uint64_t cell = 0; cell < (bytes + 1) / 2; ++cell) cells[cell] = {state << 32, 0};
    memset(reinterpret_cast<void*>(address), POISON, bytes);
    return reinterpret_cast<void*>(address);
}

bool release(void* memory) {
    const auto address = reinterpret_cast<uintptr_t>(memory);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return false;
    const uint64_t bytes = pages(found->second);
    madvise(memory, bytes, MADV_DONTNEED);
    madvise(cells_of(address), bytes / 2 * sizeof(Cell), MADV_DONTNEED);
    allocations.erase(found);
    if (allocations.empty()) used = 0;
    return true;
}

void define(const void* memory, uint64_t bytes) {
    Cell* cells = cells_of(reinterpret_cast<uintptr_t>(memory));
    for (uint64_t cell = 0; cell < (bytes + 1) / 2; ++cell) cells[cell] = {WRITTEN_BY_HOST << 32, 0};
}

bool allocation(uintptr_t address, uintptr_t& begin, uint64_t& bytes) {
    auto next = allocations.upper_bound(address);
    auto found = next;
    if (next != allocations.begin()) found = std::prev(next);
    // What lies between two is said of the nearer one.
    if (next != allocations.end() && found != next && address >= found->first + found->second &&
        next->first - address < address - (found->first + found->second))
        found = next;
    if (found == allocations.end()) return false;
    begin = found->first;
    bytes = found->second;
    return true;
}

void shared_of(const Loaded* kernel, uint32_t dynamic_bytes) {
    now.shared = reinterpret_cast<uintptr_t>(kernel->kernel->shared_begin);
    now.shared_bytes = static_cast<uintptr_t>(kernel->kernel->shared_end - kernel->kernel->shared_begin);
    shared_cells.assign(now.shared_bytes / 2 + 1, Cell{0, 0});
    for (const SharedArray& array : kernel->arrays) {
        const bool dynamic = array.end - array.begin == DYNAMIC_BYTES;
        const uintptr_t end = dynamic ? array.begin + dynamic_bytes : array.end;
        for (uintptr_t at = array.begin; at < end; ++at) shared_cells[(at - now.shared) / 2] = {NEVER_WRITTEN << 32, 0};
    }
    now.shared_cells = shared_cells.data();
}

void poison_shared(const Loaded*) {
    memset(reinterpret_cast<void*>(now.shared), POISON, now.shared_bytes);
}

void stamp_shared(uintptr_t address, unsigned bytes, bool under_way) {
    if (address - now.shared >= now.shared_bytes || address - now.shared + bytes > now.shared_bytes) return;
    for (uintptr_t at = address; at < address + bytes; at += 2) {
        Cell& cell = now.shared_cells[(at - now.shared) / 2];
        if (cell.write) cell = {now.write_stamp | (under_way ? 1 : 0), 0};
    }
}

namespace {

struct Access {
    uintptr_t address;
    unsigned bytes;
    bool shared;
    uintptr_t code;
    int line;
};

__attribute__((noinline)) void found(const char* kind, const Access& access, uint64_t other_epoch, int other_thread) {
    Finding finding{};
    finding.kind = kind;
    finding.code = access.code;
    finding.line = access.line;
    finding.address = access.address;
    finding.bytes = access.bytes;
    finding.shared = access.shared;
    finding.other_thread = other_thread;
    finding.other_block = other_thread >= 0 && other_epoch < now.block_start;
    // Of several readers one is remembered, who may be the one that now writes.
    if (!finding.other_block && other_thread == static_cast<int>(now.thread)) finding.other_thread = -1;
    if (finding.other_block) block_of_epoch(other_epoch, finding.other);
    report(finding);
}

uint64_t epoch_of(uint64_t stamp) { return stamp >> 32; }
unsigned writer(uint64_t stamp) { return stamp >> 1 & 1023; }
unsigned write_order(uint64_t stamp) { return stamp >> 11 & 0xfffff; }
unsigned reader(uint64_t stamp) { return stamp >> 2 & 1023; }
unsigned read_order(uint64_t stamp) { return stamp >> 12 & 0xfffff; }
uint64_t readers(uint64_t stamp) { return stamp & 3; }

/// Whether another thread's access in this epoch comes before ours: only within a warp, and after a __syncwarp.
bool before(unsigned thread, unsigned order) {
    return thread / WARP == now.thread / WARP && order != (now.order & 0xfffff);
}

bool in_earlier_block(bool shared, uint64_t epoch) {
    return !shared && epoch >= now.launch_start && epoch < now.block_start;
}

/// What both kinds of access must not meet: no memory, a copy under way, another thread's write.
void check_last_write(const Cell& cell, const Access& access, const char* race) {
    const uint64_t last = cell.write, epoch = epoch_of(last);
    if (epoch == 0) {
        found("outside its memory", access, 0, -1);
    } else if ((last & 1) && epoch >= now.block_start) {
        found("before the asynchronous copy was waited for", access, epoch, static_cast<int>(writer(last)));
    } else if (epoch == now.epoch) {
        if (writer(last) != now.thread && !before(writer(last), write_order(last)))
            found(race, access, epoch, static_cast<int>(writer(last)));
    } else if (in_earlier_block(access.shared, epoch)) {
        found(race, access, epoch, static_cast<int>(writer(last)));
    }
}

void note_reader(Cell& cell, bool shared) {
    const uint64_t last = cell.read, epoch = epoch_of(last);
    uint64_t note = now.read_stamp;
    if (epoch == now.epoch) {
        if (readers(last) >= SEVERAL_WARPS) return;
        if (reader(last) / WARP != now.thread / WARP) note |= SEVERAL_WARPS;
        else if (read_order(last) == (now.order & 0xfffff) && (readers(last) == ONE_WARP || reader(last) != now.thread))
            note |= ONE_WARP;
    } else if (!shared && epoch >= now.launch_start && (epoch < now.block_start || readers(last) == SEVERAL_BLOCKS)) {
        note |= SEVERAL_BLOCKS;
    }
    cell.read = note;
}

void check_read(Cell& cell, const Access& access) {
    const uint64_t epoch = epoch_of(cell.write);
    if (cell.read == now.read_stamp) return;
    if (access.shared ? epoch != 0 && epoch < now.block_start : epoch == NEVER_WRITTEN) {
        found("read of what was never written", access, 0, -1);
    } else {
        check_last_write(cell, access, "race: read of what another thread writes");
    }
    note_reader(cell, access.shared);
}

void check_readers(const Cell& cell, const Access& access) {
    const uint64_t last = cell.read, epoch = epoch_of(last);
    const int other = static_cast<int>(reader(last));
    const char* race = "race: write of what another thread reads";
    if (epoch == now.epoch) {
        const uint64_t many = readers(last);
        const bool mine = many == ONE_THREAD && reader(last) == now.thread;
        const bool earlier = many <= ONE_WARP && before(reader(last), read_order(last));
        if (!mine && !earlier) found(race, access, epoch, other);
    } else if (!access.shared && epoch >= now.launch_start &&
               (epoch < now.block_start || readers(last) == SEVERAL_BLOCKS)) {
        found(race, access, epoch, other);
    }
}

void check_write(Cell& cell, const Access& access) {
    if (cell.write == now.write_stamp && cell.read == 0) return;
    check_last_write(cell, access, "race: write of what another thread writes");
    if (cell.write == 0) return;
    if (cell.read) check_readers(cell, access);
    cell = {now.write_stamp, 0};
}

/// Neither on a stack nor in the card's memory: constants of the text may be read.
__attribute__((noinline)) void elsewhere(const Access& access, bool write) {
    if (!running() || holds_operands(access.address)) return;
    const bool inside = holds(running()->module, access.address);
    if (inside && !write) return;
    found("outside its memory", access, 0, -1);
    if (!inside) abandon();
}

template <bool WRITE> inline void access(uintptr_t address, unsigned bytes, uintptr_t code, int line) {
    if (address - now.stacks < now.stacks_bytes) return;
    Cell* cells;
    uintptr_t offset;
    bool shared = true;
    if ((offset = address - now.shared) < now.shared_bytes) {
        cells = now.shared_cells;
    } else if ((offset = address - now.global) < now.global_bytes) {
        cells = now.global_cells;
        shared = false;
    } else {
        return elsewhere({address, bytes, false, code, line}, WRITE);
    }
    const uintptr_t last = (offset + bytes - 1) / 2;
    for (uintptr_t cell = offset / 2; cell <= last; ++cell) {
        // Where nothing is, one report is enough.
        const Access at{address, bytes, shared, code, line};
        if (WRITE) check_write(cells[cell], at);
        else check_read(cells[cell], at);
    }
}

} // namespace

void check_access(uintptr_t address, unsigned bytes, bool write, uintptr_t code, int line) {
    if (write) access<true>(address, bytes, code, line);
    else access<false>(address, bytes, code, line);
}

const char* library_access(uintptr_t address, uint64_t bytes, bool write) {
    if (address - now.global >= now.global_bytes || now.global_bytes - (address - now.global) < bytes) return "outside its memory";
    const uintptr_t first = address - now.global, last = (first + bytes - 1) / 2;
    for (uintptr_t cell = first / 2; cell <= last; ++cell) {
        const uint64_t epoch = epoch_of(now.global_cells[cell].write);
        if (epoch == 0) return "outside its memory";
        if (!write && epoch == NEVER_WRITTEN) return "read of what was never written";
        if (write) now.global_cells[cell] = {WRITTEN_BY_HOST << 32, 0};
    }
    return nullptr;
}

} // namespace emulator

using emulator::access;

#define HOOKS(bytes)                                                                                                \
    HOOK void __tsan_read##bytes(void* p) { access<false>(reinterpret_cast<uintptr_t>(p), bytes, CALLER, 0); }       \
    HOOK void __tsan_write##bytes(void* p) { access<true>(reinterpret_cast<uintptr_t>(p), bytes, CALLER, 0); }       \
    HOOK void __tsan_unaligned_read##bytes(void* p) { access<false>(reinterpret_cast<uintptr_t>(p), bytes, CALLER, 0); } \
    HOOK void __tsan_unaligned_write##bytes(void* p) { access<true>(reinterpret_cast<uintptr_t>(p), bytes, CALLER, 0); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

HOOK void __tsan_read_range(void* p, unsigned long bytes) {
    if (bytes) access<false>(reinterpret_cast<uintptr_t>(p), static_cast<unsigned>(bytes), CALLER, 0);
}
HOOK void __tsan_write_range(void* p, unsigned long bytes) {
    if (bytes) access<true>(reinterpret_cast<uintptr_t>(p), static_cast<unsigned>(bytes), CALLER, 0);
}
HOOK void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
    __tsan_read_range(const_cast<void*>(from), bytes);
    __tsan_write_range(to, bytes);
    return memcpy(to, from, bytes);
}
HOOK void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
    __tsan_read_range(const_cast<void*>(from), bytes);
    __tsan_write_range(to, bytes);
    return memmove(to, from, bytes);
}
HOOK void* __tsan_memset(void* to, int value, unsigned long bytes) {
    __tsan_write_range(to, bytes);
    return memset(to, value, bytes);
}
HOOK void __tsan_init(void) {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit(void) {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}

// What -fsanitize=alignment passes: the start of its structure is a place in the text.
struct Misaligned {
    const char* file;
    uint32_t line, column;
    const void* type;
    unsigned char log_alignment, kind;
};

HOOK void __ubsan_handle_type_mismatch_v1(const Misaligned* what, uintptr_t address) {
    if (address == 0) return; // a null pointer is outside all memory, which the access itself will find
    emulator::Finding finding{};
    finding.kind = "misaligned access";
    finding.line = static_cast<int>(what->line);
    finding.address = address;
    finding.bytes = 1u << what->log_alignment;
    finding.shared = address - emulator::now.shared < emulator::now.shared_bytes;
    finding.other_thread = -1;
    emulator::report(finding);
}
