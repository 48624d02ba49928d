// y[i] = x mirrored within its 32 elements, minus the greatest of them; by warps, through memory the size of which is given.
extern "C" __global__ void __launch_bounds__(64) mirror(const float* x, float* y) {
    extern __shared__ unsigned char memory[];
    float* line = (float*)memory;
    const unsigned i = blockIdx.x * 64 + threadIdx.x, lane = threadIdx.x % 32;
    const float mine = x[i];
    float most = mine;
    for (int by = 16; by > 0; by /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, by));
    line[threadIdx.x] = mine;
    __syncwarp();
    y[i] = line[threadIdx.x - lane + 31 - lane] - most;
}
