// d += a b with fragments as they are given: lane by lane, register by register.
extern "C" __global__ void __launch_bounds__(32) fragments(const unsigned* a, const unsigned* b, float* d) {
    unsigned own_a[4], own_b[2];
    float own_d[4];
    for (int i = 0; i < 4; ++i) own_a[i] = a[threadIdx.x * 4 + i];
    for (int i = 0; i < 2; ++i) own_b[i] = b[threadIdx.x * 2 + i];
    for (int i = 0; i < 4; ++i) own_d[i] = d[threadIdx.x * 4 + i];
    mma_m16n8k16_bf16(own_d, own_a, own_b);
    for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = own_d[i];
}
