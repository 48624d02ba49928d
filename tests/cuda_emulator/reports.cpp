// What was found, as lines for people, and the border that tests call.

#include "machine.h"

#include <cstring>
#include <map>
#include <tuple>

namespace emulator {

namespace {

constexpr size_t MOST_REPORTS = 64;

struct Noted {
    std::string text;
    uint64_t times;
};
std::vector<Noted> noted;
std::map<std::tuple<const char*, uintptr_t, int, const Loaded*>, size_t> places;
uint64_t beyond;

std::string index_text(const uint32_t index[3]) {
    std::string text = std::to_string(index[0]);
    if (index[1] || index[2]) text += "," + std::to_string(index[1]);
    if (index[2]) text += "," + std::to_string(index[2]);
    return text;
}

/// "`tile`, byte 64 of 64".
std::string place_of(const Finding& finding) {
    const std::string bytes = std::to_string(finding.bytes) + " bytes at ";
    if (finding.shared) {
        const SharedArray* nearest = nullptr;
        uintptr_t least = UINTPTR_MAX;
        for (const SharedArray& array : running()->arrays) {
            const uintptr_t away = finding.address < array.begin ? array.begin - finding.address
                                   : finding.address >= array.end ? finding.address - array.end
                                                                  : 0;
            if (away < least || (away == 0 && finding.address >= array.begin && finding.address < array.end)) {
                nearest = &array;
                least = away;
            }
        }
        if (!nearest) return bytes + "shared memory, of which the kernel has none";
        return bytes + std::to_string(static_cast<long long>(finding.address - nearest->begin)) + " of shared `" + nearest->name +
               "`, which has " + std::to_string(nearest->end - nearest->begin);
    }
    uintptr_t begin;
    uint64_t length;
    if (finding.address - now.global >= now.global_bytes || !allocation(finding.address, begin, length))
        return bytes + "an address far from everything";
    unsigned count;
    void* const* operands = operands_of_launch(count);
    std::string name = "memory that is no operand";
    for (unsigned operand = 0; operand < count; ++operand) {
        const auto address = reinterpret_cast<uintptr_t>(operands[operand]);
        if (address < begin || address >= begin + length + (length == 0)) continue;
        name = "operand " + std::to_string(operand);
        if (address == begin) break;
    }
    return bytes + std::to_string(static_cast<long long>(finding.address - begin)) + " of " + name + ", which has " +
           std::to_string(length);
}

std::string text_of(const Finding& finding) {
    std::string line = finding.line ? std::to_string(finding.line) : line_of(running()->module, finding.code);
    const uint32_t block[3] = {blockIdx.x, blockIdx.y, blockIdx.z};
    std::string text = std::string(running()->kernel->entry) + ":" + (line.empty() ? "?" : line) + ": " + finding.kind +
                       " (block " + index_text(block) + ", thread " + std::to_string(now.thread) + ")";
    if (finding.address || finding.bytes) text += ": " + place_of(finding);
    if (!finding.more.empty()) text += ": " + finding.more;
    if (finding.other_thread >= 0) {
        text += "; the other is thread " + std::to_string(finding.other_thread);
        if (finding.other_block) text += " of block " + index_text(finding.other);
    }
    return text;
}

} // namespace

void report(Finding finding) {
    const auto place = std::make_tuple(finding.kind, finding.code, finding.line, running());
    const auto known = places.find(place);
    if (known != places.end()) {
        ++noted[known->second].times;
    } else if (noted.size() < MOST_REPORTS) {
        places[place] = noted.size();
        noted.push_back({text_of(finding), 1});
    } else {
        ++beyond;
    }
}

void report(const std::string& text) {
    for (Noted& one : noted) {
        if (one.text != text) continue;
        ++one.times;
        return;
    }
    if (noted.size() < MOST_REPORTS) noted.push_back({text, 1});
    else ++beyond;
}

std::string take_reports() {
    std::string all;
    for (const Noted& one : noted) {
        all += one.text;
        if (one.times > 1) all += "; " + std::to_string(one.times) + " times in all";
        all += "\n";
    }
    if (beyond) all += "and " + std::to_string(beyond) + " more\n";
    noted.clear();
    places.clear();
    beyond = 0;
    return all;
}

} // namespace emulator

using namespace emulator;

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

/// A text for the caller: as much as fits, ended by a zero; its whole length is returned.
size_t give(const std::string& text, char* out, size_t room) {
    if (room) {
        const size_t length = text.size() < room - 1 ? text.size() : room - 1;
        memcpy(out, text.data(), length);
        out[length] = 0;
    }
    return text.size();
}

std::string taken;

} // namespace

/// An operand of a launch, in memory of the caller.
struct EmulatorOperand {
    unsigned char* bytes;
    uint64_t length;
    /// 0: nobody has written it before the launch.
    uint32_t written;
};

EXPORTED Module* emulator_load(const char* path, char* error, size_t room) {
    std::string why;
    Module* module = load(path, why);
    if (!module) give(why, error, room);
    return module;
}

EXPORTED void emulator_unload(Module* module) {
    unload(module);
}

/// 0 when the kernel has run; 1: no such kernel, 2: another number of operands, 3: no memory, 4: too many threads.
EXPORTED int emulator_launch(Module* module, const char* entry, const uint32_t grid[3], uint32_t block,
                             const EmulatorOperand* operands, uint32_t count) {
    std::string why;
    const Loaded* kernel = find(module, entry, why);
    if (!kernel) return 1;
    if (kernel->kernel->operands != count) return 2;
    if (block == 0 || block > MOST_THREADS) return 4;
    std::vector<void*> addresses;
    int result = 0;
    for (uint32_t i = 0; i < count && result == 0; ++i) {
        void* address = alloc(operands[i].length, operands[i].written ? WRITTEN_BY_HOST : NEVER_WRITTEN);
        if (!address) {
            result = 3;
            break;
        }
        if (operands[i].written) memcpy(address, operands[i].bytes, operands[i].length);
        addresses.push_back(address);
    }
    if (result == 0) {
        launch(kernel, grid, block, addresses.data(), 0);
        // Reports name operands by their addresses, so they are made before these are given back.
        taken += take_reports();
    }
    for (size_t i = 0; i < addresses.size(); ++i) {
        if (result == 0) memcpy(operands[i].bytes, addresses[i], operands[i].length);
        release(addresses[i]);
    }
    return result;
}

/// Memory of the card for a library's call, which `emulator_finish` gives back; null if there is none.
EXPORTED void* emulator_alloc(const EmulatorOperand* operand) {
    void* address = alloc(operand->length, operand->written ? WRITTEN_BY_HOST : NEVER_WRITTEN);
    if (address && operand->written) memcpy(address, operand->bytes, operand->length);
    return address;
}

/// What such memory holds now, to where it came from; it is no more. The reports are those of the call.
EXPORTED void emulator_finish(void* address, const EmulatorOperand* operand) {
    taken += take_reports();
    memcpy(operand->bytes, address, operand->length);
    release(address);
}

/// Whether a library may make an access; what it may not is reported.
EXPORTED int emulator_touch(const void* address, uint64_t bytes, int write, const char* who) {
    const char* wrong = library_access(reinterpret_cast<uintptr_t>(address), bytes, write);
    if (wrong) report(std::string(who) + ": " + wrong);
    return !wrong;
}

/// The reports so far, one a line; with room for all of them they are forgotten.
EXPORTED size_t emulator_reports(char* out, size_t room) {
    const size_t length = give(taken, out, room);
    if (room > length) taken.clear();
    return length;
}
