// What the parts of the emulator share.
//
// A launch runs its blocks one after the other, the threads of a block as fibres on one thread of the host, in an order that
// depends on nothing else: so do reports. Time is counted in epochs: one more at every barrier of a block and at every start
// of a block, never reset while the library is loaded. Within an epoch `__syncwarp` counts an order per thread.
// Shuffles and products of a warp order no accesses to memory, as in CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "device.h"

namespace emulator {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;

/// What is remembered of two bytes of memory, packed into two words so that a check is a few instructions.
struct Cell {
    /// epoch << 32 | order << 11 | thread << 1 | under way, of the last write; 0 where there is no memory.
    uint64_t write;
    /// epoch << 32 | order << 12 | thread << 2 | Readers, since the last write.
    uint64_t read;
};
enum Readers : uint64_t { ONE_THREAD, ONE_WARP, SEVERAL_WARPS, SEVERAL_BLOCKS };

/// Epochs below FIRST_EPOCH are no times.
constexpr uint64_t WRITTEN_BY_HOST = 1, NEVER_WRITTEN = 2, FIRST_EPOCH = 16;

enum class Wait : uint8_t { Runs, Barrier, Warp, Done };

/// A copy into shared memory that has not landed.
struct Copy {
    uintptr_t target;
    unsigned char bytes[16];
    unsigned group;
};

/// What a lane asks of its warp.
struct WarpCall {
    /// Computes the results of all lanes that came; the others are null.
    void (*resolve)(WarpCall* const lanes[WARP]);
    unsigned mask;
    int line;
    const char* what;
};

struct Thread {
    void* stack_pointer;
    Wait wait;
    int line;
    unsigned order;
    WarpCall* call;
    std::vector<Copy> copies;
    unsigned group;
};

/// State of the running thread that every access needs.
struct Now {
    uintptr_t stacks, stacks_bytes;
    uintptr_t global, global_bytes;
    Cell* global_cells;
    uintptr_t shared, shared_bytes;
    Cell* shared_cells;
    uint64_t write_stamp, read_stamp;
    uint64_t epoch, block_start, launch_start;
    unsigned thread, order;
};
extern Now now;

struct SharedArray {
    uintptr_t begin, end;
    std::string name;
};

/// A loaded library of kernels.
struct Module;
struct Loaded {
    const AlipKernel* kernel;
    const Module* module;
    std::vector<SharedArray> arrays;
};
Module* load(const char* path, std::string& error);
void unload(Module* module);
/// Null if there is none.
const Loaded* find(Module* module, const char* entry, std::string& error);
/// Whether an address lies in the module, where constants may be read.
bool holds(const Module* module, uintptr_t address);
/// Lines of a text by addresses of its code; empty where unknown.
std::string line_of(const Module* module, uintptr_t code);

/// Memory of the card. `alloc` gives null beyond the end of the address space reserved for it.
void* alloc(uint64_t bytes, uint64_t state);
bool release(void* address);
/// Marks bytes as written by the host.
void define(const void* address, uint64_t bytes);
/// The allocation in or near which an address lies: begin and bytes; false if there is none.
bool allocation(uintptr_t address, uintptr_t& begin, uint64_t& bytes);
/// Prepares shared memory: cells and poison for a launch, poison again for every block.
void shared_of(const Loaded* kernel, uint32_t dynamic_bytes);
void poison_shared(const Loaded* kernel);
/// Checks an access of the machine itself, on behalf of the running thread.
void check_access(uintptr_t address, unsigned bytes, bool write, uintptr_t code, int line);
/// Makes an access of a library, whose threads nobody sees; what is wrong with it, or null.
const char* library_access(uintptr_t address, uint64_t bytes, bool write);
/// Marks shared bytes as under way, or as landed now.
void stamp_shared(uintptr_t address, unsigned bytes, bool under_way);

/// What a block may ask for at launch; an array of this very size has as many bytes as it asks for.
constexpr uint32_t DYNAMIC_BYTES = 232448;
/// Runs a kernel; reports are kept until they are taken.
void launch(const Loaded* kernel, const uint32_t grid[3], uint32_t block, void* const* operands, uint32_t dynamic_bytes);
/// The running thread goes no further.
[[noreturn]] void abandon();
/// Waits until all lanes of the mask have asked for the same.
void warp_call(WarpCall* call);
const Loaded* running();
void block_of_epoch(uint64_t epoch, uint32_t block[3]);
void* const* operands_of_launch(unsigned& count);
bool holds_operands(uintptr_t address);

/// Notes a report; the same kind at the same place is noted once.
struct Finding {
    const char* kind;
    uintptr_t code;   // where a line is not known
    int line;         // 0 where it is not known
    uintptr_t address;
    unsigned bytes;
    bool shared;
    int other_thread; // -1: none
    bool other_block;
    uint32_t other[3];
    std::string more;
};
void report(Finding finding);
/// Notes a report that is no kernel's.
void report(const std::string& text);
std::string take_reports();

} // namespace emulator
