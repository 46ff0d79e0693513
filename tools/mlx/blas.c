// What MLX's CPU backend calls and gets faster from elsewhere.
//
// The BLAS: OpenBLAS from the wheel scipy-openblas32, under the names that libmlx asks for.
//
// libmlx brings the reference BLAS, which is 20 to 70 times slower. The loader takes the first definition of a symbol, and
// a binary's own libraries come before those of libmlx, so whoever links this library in front of libmlx (or preloads
// it) gets OpenBLAS. The wheel's symbols have a prefix, so every name is passed on to its prefixed one.
//
// forwards.h, which tools/mlx-prefix.sh makes from libmlx's imports, has a line FORWARD(name) for each but cblas_sgemm.

#include <cblas.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A jump leaves the arguments where they are, so no signature is needed, of which Fortran's have hidden parts.
#if defined(__x86_64__)
#define JUMP(slot) "jmp *" slot "(%rip)"
#elif defined(__aarch64__)
#define JUMP(slot) "adrp x16, " slot "\n\tldr x16, [x16, :lo12:" slot "]\n\tbr x16"
#else
#error "the wheel scipy-openblas32 exists for x86_64 and aarch64"
#endif
#define FORWARD(name)                                                                        \
    __attribute__((visibility("hidden"))) void *slot_##name;                                 \
    __asm__(".text\n.globl " #name "\n.type " #name ", %function\n" #name ":\n\t"             \
            JUMP("slot_" #name) "\n.size " #name ", .-" #name "\n");
#include "forwards.h"
#undef FORWARD

static __typeof__(scipy_cblas_sgemm) *sgemm;
static __typeof__(scipy_cblas_sgemm_batch) *sgemm_batch;
static __typeof__(scipy_cblas_sgemv) *sgemv;
static __typeof__(scipy_openblas_get_num_threads) *get_num_threads;
// Up to how many rows a product is cut into small parts.
static int few_rows;

static void *find(void *openblas, const char *name) {
    void *found = openblas == NULL ? NULL : dlsym(openblas, name);
    if (found == NULL) {
        // As the loader itself does where a library or a symbol is missing.
        fprintf(stderr, "libmlxblas.so: OpenBLAS can't be loaded: %s; run `make setup` again\n", dlerror());
        _exit(127);
    }
    return found;
}

// From how many multiplications on a product is shared out to threads, and how many parts are handed over at once.
enum { WORTH_THREADS = 1 << 20, PARTS = 256 };
// Kernels compute 16 rows or columns at once.
enum { KERNEL = 16 };
// A product of a few rows is cut into parts of so many multiplications, and of so many at most along k, half of that from so
// many rows on. Where OpenBLAS has kernels for products of less than a million multiplications, those for AVX-512, they take
// op(B) as it lies; the others copy it into tiles first, which with a few rows is most of the work. Three products of 14336 ×
// 4096 on two such cores, ms, in halves and cut like this: 67 and 26 at 2 rows, 70 and 26 at 4, 74 and 35 at 8, 88 and 53 at 16;
// two of them and two of 4096 × 4096: 82 and 51 at 20, 86 and 57 at 24, 99 and 87 at 32. Without such kernels it makes little
// difference up to 16 rows, and takes up to a fifth longer beyond.
enum { FEW_ROWS = 16, FEW_ROWS_SMALL_KERNELS = 32, SMALL = 400000, SMALL_K = 2048, MANY_OF_FEW = 25 };
static const char *const SMALL_KERNELS[] = {"SkylakeX", "Cooperlake", "SapphireRapids"};

// OpenBLAS reads its variables when it is loaded, so it is loaded by hand, after they are set. Its threads spin after each
// product, by default for 2^26 cycles, longer than a step takes: they take the processor from whoever has work, and
// then wait for their own turn when the next product comes. 2^16 cycles, some 30 µs, bridge what lies between two
// products of a layer.
__attribute__((constructor)) static void load(void) {
    setenv("OPENBLAS_THREAD_TIMEOUT", "16", 0);
    void *openblas = dlopen("libscipy_openblas.so", RTLD_NOW | RTLD_LOCAL);
    sgemm = find(openblas, "scipy_cblas_sgemm");
    sgemm_batch = find(openblas, "scipy_cblas_sgemm_batch");
    sgemv = find(openblas, "scipy_cblas_sgemv");
    get_num_threads = find(openblas, "scipy_openblas_get_num_threads");
    few_rows = FEW_ROWS;
    const char *core = ((__typeof__(scipy_openblas_get_corename) *)find(openblas, "scipy_openblas_get_corename"))();
    for (size_t i = 0; i < sizeof SMALL_KERNELS / sizeof *SMALL_KERNELS; i++) {
        if (strcmp(core, SMALL_KERNELS[i]) == 0) few_rows = FEW_ROWS_SMALL_KERNELS;
    }
#define FORWARD(name) slot_##name = find(openblas, "scipy_" #name);
#include "forwards.h"
}

// y = alpha op(matrix) x + beta y, where the matrix as it is stored has this many rows and columns.
static void multiply_vector(CBLAS_TRANSPOSE transposed, int rows, int columns, float alpha, const float *matrix,
                            int leading, const float *x, int x_step, float beta, float *y, int y_step) {
    // sgemm doesn't read y where beta is 0, but sgemv multiplies it by 0, which leaves NaN as NaN.
    if (beta == 0) {
        int length = transposed == CblasNoTrans ? rows : columns;
        if (y_step == 1) {
            memset(y, 0, sizeof(float) * (size_t)length);
        } else {
            for (int i = 0; i < length; i++) y[(size_t)i * y_step] = 0;
        }
        beta = 1;
    }
    sgemv(CblasRowMajor, transposed, rows, columns, alpha, matrix, leading, x, x_step, beta, y, y_step);
}

static CBLAS_TRANSPOSE flipped(CBLAS_TRANSPOSE transposed) {
    return transposed == CblasNoTrans ? CblasTrans : CblasNoTrans;
}

// By parts of C with so many of its columns, or else of its rows. sgemm's own threads wait for each other several times
// within a product, and in this wheel they do so without giving the processor away: where another process takes a core, one
// that waits spins through its whole share, 16 ms, before the one that it waits for gets its turn. The products of a batch
// know nothing of each other.
static void multiply_parts(CBLAS_TRANSPOSE a_transposed, CBLAS_TRANSPOSE b_transposed, int m, int n, int k, float alpha,
                           const float *a, int a_leading, const float *b, int b_leading, float beta, float *c,
                           int c_leading, int by_columns, int width) {
    CBLAS_TRANSPOSE a_flags[PARTS], b_flags[PARTS];
    int ms[PARTS], ns[PARTS], ks[PARTS], a_steps[PARTS], b_steps[PARTS], c_steps[PARTS], sizes[PARTS];
    float alphas[PARTS], betas[PARTS], *cs[PARTS];
    const float *as[PARTS], *bs[PARTS];
    int total = by_columns ? n : m, first = 0;
    while (first < total) {
        int count = 0;
        for (; first < total && count < PARTS; first += width, count++) {
            int size = total - first < width ? total - first : width;
            int row = by_columns ? 0 : first, column = by_columns ? first : 0;
            a_flags[count] = a_transposed, b_flags[count] = b_transposed;
            ms[count] = by_columns ? m : size, ns[count] = by_columns ? size : n, ks[count] = k;
            as[count] = a + (size_t)row * (a_transposed == CblasNoTrans ? a_leading : 1);
            bs[count] = b + (size_t)column * (b_transposed == CblasNoTrans ? 1 : b_leading);
            cs[count] = c + (size_t)row * c_leading + column;
            a_steps[count] = a_leading, b_steps[count] = b_leading, c_steps[count] = c_leading;
            alphas[count] = alpha, betas[count] = beta, sizes[count] = 1;
        }
        sgemm_batch(CblasRowMajor, a_flags, b_flags, ms, ns, ks, alphas, as, a_steps, bs, b_steps, betas, cs, c_steps,
                    count, sizes);
    }
}

// A product of a few rows, by small parts.
static void multiply_few(CBLAS_TRANSPOSE a_transposed, CBLAS_TRANSPOSE b_transposed, int m, int n, int k, float alpha,
                         const float *a, int a_leading, const float *b, int b_leading, float beta, float *c,
                         int c_leading) {
    int most = m < MANY_OF_FEW ? SMALL_K : SMALL_K / 2;
    for (int first = 0; first < k; first += most) {
        int depth = k - first < most ? k - first : most;
        // As many for each thread.
        int threads = get_num_threads(), rounds = (int)((double)m * n * depth / SMALL / threads) + 1;
        int width = ((n - 1) / (rounds * threads) / KERNEL + 1) * KERNEL;
        multiply_parts(a_transposed, b_transposed, m, n, depth, alpha,
                       a + (size_t)first * (a_transposed == CblasNoTrans ? 1 : a_leading), a_leading,
                       b + (size_t)first * (b_transposed == CblasNoTrans ? b_leading : 1), b_leading,
                       first == 0 ? beta : 1, c, c_leading, 1, width);
    }
}

// C = alpha op(A) op(B) + beta C, with op(A) of m × k and op(B) of k × n.
//
// A product with one row or one column goes to sgemv. sgemm repacks its operands into tiles before it multiplies, and
// with one row that is most of the work: each weight would be read, written and read again for a single use.
void cblas_sgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE a_transposed, CBLAS_TRANSPOSE b_transposed, int m, int n, int k,
                 float alpha, const float *a, int a_leading, const float *b, int b_leading, float beta, float *c,
                 int c_leading) {
    if (order == CblasColMajor) {
        // By columns the same memory is Cᵀ = op(B)ᵀ op(A)ᵀ by rows.
        cblas_sgemm(CblasRowMajor, b_transposed, a_transposed, n, m, k, alpha, b, b_leading, a, a_leading, beta, c,
                    c_leading);
    } else if (k > 0 && m == 1 && n > 0) {
        // The row of op(A), times op(B): as a column it is op(B)ᵀ times it.
        int step = a_transposed == CblasNoTrans ? 1 : a_leading;
        int rows = b_transposed == CblasNoTrans ? k : n;
        multiply_vector(flipped(b_transposed), rows, k + n - rows, alpha, b, b_leading, a, step, beta, c, 1);
    } else if (k > 0 && n == 1 && m > 0) {
        int step = b_transposed == CblasNoTrans ? b_leading : 1;
        int rows = a_transposed == CblasNoTrans ? m : k;
        multiply_vector(a_transposed, rows, k + m - rows, alpha, a, a_leading, b, step, beta, c, c_leading);
    } else if ((double)m * n * k >= WORTH_THREADS && m <= few_rows && n >= m) {
        multiply_few(a_transposed, b_transposed, m, n, k, alpha, a, a_leading, b, b_leading, beta, c, c_leading);
    } else if ((double)m * n * k >= WORTH_THREADS && get_num_threads() > 1) {
        int by_columns = n >= m, total = by_columns ? n : m;
        int width = ((total - 1) / get_num_threads() / KERNEL + 1) * KERNEL;
        multiply_parts(a_transposed, b_transposed, m, n, k, alpha, a, a_leading, b, b_leading, beta, c, c_leading,
                       by_columns, width);
    } else {
        sgemm(order, a_transposed, b_transposed, m, n, k, alpha, a, a_leading, b, b_leading, beta, c, c_leading);
    }
}

// A power of two. The engine makes its exponentials of them, since MLX's own exp takes several times longer, and the C
// library knows a shorter way to them than to powers in general. Those come from its function for doubles: the one for
// floats has this name.
float powf(float base, float exponent) { return base == 2.0f ? exp2f(exponent) : (float)pow(base, exponent); }
