// Libraries of compiled kernels: where a kernel and its shared arrays are, and which line of a text an address is.
//
// Names and sizes of shared arrays stand in the symbol table of the library's file, since they are local to it.

#include "machine.h"

#include <cstdio>
#include <cstring>
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fstream>
#include <link.h>
#include <map>

namespace emulator {

struct Module {
    std::string path;
    void* handle;
    uintptr_t begin, end;
    std::vector<SharedArray> arrays;
    std::map<std::string, Loaded> kernels;
    mutable std::map<uintptr_t, std::string> lines;
};

namespace {

/// From `n3::entry::tile` or `entry(float*)::tile` the last name.
std::string plain_name(const char* symbol) {
    int status = 0;
    char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
    std::string name = status == 0 && text ? text : symbol;
    free(text);
    const size_t colons = name.rfind("::");
    return colons == std::string::npos ? name : name.substr(colons + 2);
}

void read_symbols(Module& module) {
    std::ifstream file(module.path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (bytes.size() < sizeof(ElfW(Ehdr))) return;
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
    const char* section_names = bytes.data() + sections[header->e_shstrndx].sh_offset;
    for (unsigned s = 0; s < header->e_shnum; ++s) {
        if (sections[s].sh_type != SHT_SYMTAB) continue;
        const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[s].sh_offset);
        const char* names = bytes.data() + sections[sections[s].sh_link].sh_offset;
        for (size_t i = 0; i < sections[s].sh_size / sizeof(ElfW(Sym)); ++i) {
            const auto& symbol = symbols[i];
            if (symbol.st_shndx >= header->e_shnum || symbol.st_size == 0) continue;
            const char* section = section_names + sections[symbol.st_shndx].sh_name;
            if (strncmp(section, "alip_shared_", 12) != 0) continue;
            std::string name = plain_name(names + symbol.st_name);
            if (name.rfind("alip_redzone", 0) == 0) continue;
            const uintptr_t begin = module.begin + symbol.st_value;
            module.arrays.push_back({begin, begin + symbol.st_size, name});
        }
    }
}

int extent(dl_phdr_info* info, size_t, void* data) {
    auto* module = static_cast<Module*>(data);
    if (module->path != info->dlpi_name) return 0;
    module->begin = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& part = info->dlpi_phdr[i];
        if (part.p_type != PT_LOAD) continue;
        const uintptr_t end = info->dlpi_addr + part.p_vaddr + part.p_memsz;
        if (end > module->end) module->end = end;
    }
    return 1;
}

} // namespace

Module* load(const char* path, std::string& error) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        error = dlerror();
        return nullptr;
    }
    auto* module = new Module{path, handle, 0, 0, {}, {}, {}};
    dl_iterate_phdr(extent, module);
    read_symbols(*module);
    return module;
}

void unload(Module* module) {
    dlclose(module->handle);
    delete module;
}

const Loaded* find(Module* module, const char* entry, std::string& error) {
    const auto known = module->kernels.find(entry);
    if (known != module->kernels.end()) return &known->second;
    const auto* kernel = static_cast<const AlipKernel*>(dlsym(module->handle, ("alip_kernel_" + std::string(entry)).c_str()));
    if (!kernel) {
        error = "no kernel " + std::string(entry);
        return nullptr;
    }
    Loaded loaded{kernel, module, {}};
    const auto begin = reinterpret_cast<uintptr_t>(kernel->shared_begin);
    const auto end = reinterpret_cast<uintptr_t>(kernel->shared_end);
    for (const SharedArray& array : module->arrays)
        if (array.begin >= begin && array.end <= end) loaded.arrays.push_back(array);
    return &(module->kernels[entry] = loaded);
}

bool holds(const Module* module, uintptr_t address) {
    return address >= module->begin && address < module->end;
}

std::string line_of(const Module* module, uintptr_t code) {
    const auto known = module->lines.find(code);
    if (known != module->lines.end()) return known->second;
    char command[4096], line[1024] = "";
    // The address is where the call returns to.
    snprintf(command, sizeof command, "addr2line -e '%s' %#lx 2>/dev/null", module->path.c_str(),
             static_cast<unsigned long>(code - module->begin - 1));
    if (FILE* pipe = popen(command, "r")) {
        if (!fgets(line, sizeof line, pipe)) line[0] = 0;
        pclose(pipe);
    }
    std::string text = line;
    text = text.substr(0, text.find_first_of("\n "));
    const size_t colon = text.rfind(':');
    text = colon == std::string::npos || text.find('?') != std::string::npos ? "" : text.substr(colon + 1);
    return module->lines[code] = text;
}

} // namespace emulator
