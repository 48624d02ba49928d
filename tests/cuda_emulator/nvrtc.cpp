// A stand-in of NVRTC: a "cubin" is a library that the machine's C++ compiler makes of the texts for the emulator. It finds the
// kernels by their form, `extern "C" __global__ void __launch_bounds__(N) ENTRY(` or with `(N, 1)`, each within `namespace NAME {`.
// ALIP_COMPILER and ALIP_SOURCES are given where this is compiled.
//   ALIP_STANDIN_NVRTC  the newest architecture it knows, as 90
//   ALIP_STANDIN_BUILD  its build, as 8.93
// With ALIP_OLD_NVRTC it is 11.1, which makes PTX only.

#include "machine.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <regex>
#include <unistd.h>

#define NVRTC extern "C" __attribute__((visibility("default"))) int

namespace {

enum : int { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6 };

struct Program {
    std::string source, log, ptx, cubin;
};

std::string own_folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&own_folder), &info);
    const std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

std::string whole(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

/// The text as C++ for the emulator; empty if no kernel is found in it.
std::string as_cpp(const std::string& source) {
    static const std::regex space("namespace (\\w+) \\{");
    static const std::regex kernel("extern \"C\" __global__ void __launch_bounds__\\((\\d+)(?:, 1)?\\) (\\w+)\\(");
    static const std::regex dynamic("extern __shared__([^;]*)\\[\\]");
    const std::string plain = std::regex_replace(
        source, dynamic, "__shared__ __align__(16) $1[" + std::to_string(emulator::DYNAMIC_BYTES) + "]");
    std::string cpp = "#include \"" ALIP_SOURCES "/device.h\"\n", ends, name;
    size_t at = 0, sections = 0;
    while (at < plain.size()) {
        const size_t end = std::min(plain.find('\n', at), plain.size() - 1);
        const std::string line = plain.substr(at, end - at + 1);
        at = end + 1;
        std::smatch found;
        if (line.rfind("namespace ", 0) == 0 && std::regex_search(line, found, space)) {
            name = found[1];
            const std::string section = std::to_string(++sections);
            cpp += "#undef ALIP_SHARED\n#define ALIP_SHARED \"alip_shared_" + section + "\"\n";
            cpp += "extern \"C\" __attribute__((weak, visibility(\"hidden\"))) unsigned char __start_alip_shared_" + section +
                   "[], __stop_alip_shared_" + section + "[];\n";
        } else if (std::regex_search(line, found, kernel)) {
            const std::string section = std::to_string(sections), block = found[1], entry = found[2];
            const std::string pointer = "&" + name + "::" + entry;
            ends += "#undef ALIP_SHARED\n#define ALIP_SHARED \"alip_shared_" + section + "\"\n";
            ends += "namespace " + name + " { __shared__ unsigned char alip_redzone_last[512]; }\n";
            ends += "extern \"C\" __attribute__((visibility(\"default\"))) const AlipKernel alip_kernel_" + entry + ";\n";
            ends += "const AlipKernel alip_kernel_" + entry + " = {\"" + entry + "\", [](void** operands) { alip_call(" + pointer +
                    ", operands); }, __start_alip_shared_" + section + ", __stop_alip_shared_" + section + ", alip_operands(" +
                    pointer + "), " + block + "};\n";
        }
        cpp += line;
    }
    return ends.empty() ? "" : cpp + "\n" + ends;
}

} // namespace

NVRTC nvrtcVersion(int* major, int* minor) {
#ifdef ALIP_OLD_NVRTC
    *major = 11;
    *minor = 1;
#else
    *major = 12;
    *minor = 8;
#endif
    return SUCCESS;
}

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int) {
    return "an error of the stand-in";
}

#ifndef ALIP_OLD_NVRTC
NVRTC nvrtcGetNumSupportedArchs(int* count) {
    *count = 2;
    return SUCCESS;
}

NVRTC nvrtcGetSupportedArchs(int* known) {
    const char* newest = getenv("ALIP_STANDIN_NVRTC");
    known[0] = 80;
    known[1] = newest ? atoi(newest) : 90;
    return SUCCESS;
}
#endif

NVRTC nvrtcCreateProgram(Program** program, const char* source, const char*, int headers, const char* const*, const char* const*) {
    if (headers) return INVALID_INPUT;
    *program = new Program{source, "", "", ""};
    return SUCCESS;
}

NVRTC nvrtcDestroyProgram(Program** program) {
    delete *program;
    return SUCCESS;
}

NVRTC nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    for (int i = 0; i < count; ++i) {
        const std::string option = options[i];
        const bool known = option == "--std=c++17" || option == "--fmad=false";
        if (option.rfind("--gpu-architecture=sm_", 0) != 0 && !known) {
            program->log = "unknown option " + option;
            return INVALID_OPTION;
        }
    }
    const char* build = getenv("ALIP_STANDIN_BUILD");
    program->ptx = std::string("//\n// Generated by a stand-in\n// release 12.8, V12.") + (build ? build : "8.93") + "\n//\n\n.version 8.7\n";
    if (program->source.empty()) return SUCCESS;
    const std::string cpp = as_cpp(program->source);
    if (cpp.empty()) {
        program->log = "no kernel was found";
        return COMPILATION;
    }
    const std::string folder = own_folder();
    std::string base = folder + "/unit-XXXXXX";
    const int file = mkstemp(&base[0]);
    if (file < 0) return COMPILATION;
    close(file);
    std::ofstream(base + ".cpp") << cpp;
    // In two calls: a linker that is told of the instrumentation would add its own library.
    const std::string command = ALIP_COMPILER " " ALIP_KERNEL_FLAGS " -c '" + base + ".cpp' -o '" + base + ".o' >'" + base +
                                ".log' 2>&1 && " ALIP_COMPILER " -shared '" + base + ".o' -o '" + base + ".so' '" + folder +
                                "/libcuda.so.1' >>'" + base + ".log' 2>&1";
    const bool compiled = system(command.c_str()) == 0;
    program->log = whole(base + ".log");
    if (compiled) {
        const std::string library = whole(base + ".so");
        const uint64_t length = library.size();
        program->cubin = std::string("standin\0", 8) + std::string(reinterpret_cast<const char*>(&length), 8) + library;
    }
    for (const char* ending : {"", ".cpp", ".o", ".so", ".log"}) unlink((base + ending).c_str());
    return compiled ? SUCCESS : COMPILATION;
}

NVRTC nvrtcGetProgramLogSize(Program* program, size_t* size) {
    *size = program->log.size() + 1;
    return SUCCESS;
}

NVRTC nvrtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

NVRTC nvrtcGetPTXSize(Program* program, size_t* size) {
    *size = program->ptx.size() + 1;
    return SUCCESS;
}

NVRTC nvrtcGetPTX(Program* program, char* ptx) {
    memcpy(ptx, program->ptx.c_str(), program->ptx.size() + 1);
    return SUCCESS;
}

#ifndef ALIP_OLD_NVRTC
NVRTC nvrtcGetCUBINSize(Program* program, size_t* size) {
    *size = program->cubin.size();
    return SUCCESS;
}

NVRTC nvrtcGetCUBIN(Program* program, char* cubin) {
    memcpy(cubin, program->cubin.data(), program->cubin.size());
    return SUCCESS;
}
#endif
