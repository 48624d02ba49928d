// c[32][16] = a[32][64] @ b[64][16], bf16 into f32: two warps of 16 rows, tiles of 16 terms copied while the last is used.
__device__ static void load(unsigned short (*a_tile)[24], unsigned short (*b_tile)[24],
                            const unsigned short* a, const unsigned short* b, int tile) {
    const int row = threadIdx.x / 2, half = threadIdx.x % 2 * 8;
    cp_async_16(&a_tile[row][half], a + row * 64 + tile * 16 + half);
    if (row < 16) cp_async_16(&b_tile[row][half], b + (tile * 16 + row) * 16 + half);
}

extern "C" __global__ void __launch_bounds__(64) product(const unsigned short* __restrict__ a,
                                                         const unsigned short* __restrict__ b, float* __restrict__ c) {
    __shared__ __align__(16) unsigned short a_tile[2][32][24];
    __shared__ __align__(16) unsigned short b_tile[2][16][24];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float d[2][4] = {};
    load(a_tile[0], b_tile[0], a, b, 0);
    cp_async_commit();
    for (int tile = 0; tile < 4; ++tile) {
        const int slot = tile % 2;
        if (tile + 1 < 4) load(a_tile[1 - slot], b_tile[1 - slot], a, b, tile + 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads(); // all have loaded
        unsigned fragment_a[4];
        ldmatrix_x4(fragment_a, &a_tile[slot][warp * 16 + lane % 16][lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            unsigned fragment_b[2];
            ldmatrix_x2_trans(fragment_b, &b_tile[slot][lane % 16][n * 8]);
            mma_m16n8k16_bf16(d[n], fragment_a, fragment_b);
        }
        __syncthreads(); // all have read
    }
    for (int n = 0; n < 2; ++n)
        for (int i = 0; i < 4; ++i)
            c[(warp * 16 + lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2] = d[n][i];
}
