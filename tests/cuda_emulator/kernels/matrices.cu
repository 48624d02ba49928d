// The registers that ldmatrix gives for four matrices of 8 x 8 that lie one after the other.
extern "C" __global__ void __launch_bounds__(32) matrices(const unsigned short* x, unsigned* r) {
    __shared__ __align__(16) unsigned short tile[32][8];
    for (int i = threadIdx.x; i < 256; i += 32) tile[i / 8][i % 8] = x[i];
    __syncthreads();
    unsigned own[4];
    ldmatrix_x4(own, tile[threadIdx.x]);
    for (int i = 0; i < 4; ++i) r[threadIdx.x * 4 + i] = own[i];
}
