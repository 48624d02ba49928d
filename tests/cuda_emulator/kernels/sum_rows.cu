// y[row] = the sum of x[row][100], a block of 128 threads for each row.
extern "C" __global__ void __launch_bounds__(128) sum_rows(const float* x, float* y) {
    __shared__ float partial[128];
    const unsigned thread = threadIdx.x;
    partial[thread] = thread < 100 ? x[blockIdx.x * 100 + thread] : 0.0f;
    __syncthreads();
    for (unsigned half = 64; half > 0; half /= 2) {
        if (thread < half) {
            partial[thread] += partial[thread + half];
        }
        __syncthreads(); // halved
    }
    if (thread == 0) y[blockIdx.x] = partial[0];
}
