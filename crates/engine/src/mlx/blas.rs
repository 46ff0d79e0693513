//! The BLAS that MLX computes with on Linux: which kernels it picked for this processor, and whether they are right.
//!
//! OpenBLAS asks the processor what it is and picks a set of kernels, its core. On a processor that it takes for another
//! one it may compute wrong numbers without a word, so the engine tries some products before it is used.

use std::{
    ffi::{CStr, c_char, c_int},
    sync::OnceLock,
};

const BY_ROWS: c_int = 101;
const AS_STORED: c_int = 111;
const TRANSPOSED: c_int = 112;

/// How far a sum may be off, divided by the number of its summands, each of which is below 1.
const TOLERANCE: f64 = 1e-6;

// Those of libmlxblas.so; `tools/mlx/blas.c` is its source.
#[expect(unsafe_code, reason = "a library of C")]
unsafe extern "C" {
    fn openblas_get_corename() -> *const c_char;
    fn openblas_get_config() -> *const c_char;
    fn cblas_sgemm(
        order: c_int,
        a_transposed: c_int,
        b_transposed: c_int,
        m: c_int,
        n: c_int,
        k: c_int,
        alpha: f32,
        a: *const f32,
        a_leading: c_int,
        b: *const f32,
        b_leading: c_int,
        beta: f32,
        c: *mut f32,
        c_leading: c_int,
    );
}

/// A product came out wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "OpenBLAS computes wrong numbers with its kernels for {core}: a product of {rows} rows is off by {error:e} per summand; \
     have it take others by the environment variable OPENBLAS_CORETYPE, such as Haswell, Zen or Nehalem"
)]
pub(crate) struct WrongProduct {
    core: String,
    rows: usize,
    error: f64,
}

/// The core whose kernels are used, such as `Haswell`.
pub(crate) fn core() -> String {
    text(openblas_get_corename)
}

/// The library's version, such as `0.3.34`.
pub(crate) fn version() -> String {
    // "OpenBLAS 0.3.34 DYNAMIC_ARCH NO_AFFINITY Haswell MAX_THREADS=64"
    text(openblas_get_config).split_whitespace().nth(1).unwrap_or_default().to_owned()
}

fn text(get: unsafe extern "C" fn() -> *const c_char) -> String {
    #[expect(unsafe_code, reason = "the library owns the text, ends it with 0 and never changes it")]
    let text = unsafe { CStr::from_ptr(get()) };
    text.to_string_lossy().into_owned()
}

/// Compares products with plain loops: of one row, of a few, and of enough for all threads. It takes some milliseconds,
/// once for the process.
///
/// # Errors
/// When one is wrong.
pub(crate) fn check() -> Result<(), WrongProduct> {
    static OUTCOME: OnceLock<Result<(), WrongProduct>> = OnceLock::new();
    let check_rows = |(rows, n, k)| {
        let product = Product { m: rows, n, k, b_transposed: true, alpha: 1.0, ..Product::default() };
        match product.error() {
            error if error <= TOLERANCE => Ok(()),
            error => Err(WrongProduct { core: core(), rows, error }),
        }
    };
    // Those of a few rows are large enough for the way that those of a model's weights take.
    OUTCOME
        .get_or_init(|| {
            [(1, 193, 131), (3, 769, 521), (27, 193, 521), (64, 193, 131)].into_iter().try_for_each(check_rows)
        })
        .clone()
}

/// C = alpha op(A) op(B) + beta C by rows, with op(A) of m × k and op(B) of k × n.
#[derive(Debug, Clone, Default)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    a_transposed: bool,
    b_transposed: bool,
    alpha: f32,
    beta: f32,
    /// Numbers between the end of a row in memory and the next one.
    gap: usize,
}

/// A matrix as it lies in memory.
struct Stored {
    transposed: bool,
    leading: usize,
    numbers: Vec<f32>,
}

impl Stored {
    fn place(&self, row: usize, column: usize) -> usize {
        if self.transposed { column * self.leading + row } else { row * self.leading + column }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.numbers[self.place(row, column)].into()
    }

    fn order(&self) -> c_int {
        if self.transposed { TRANSPOSED } else { AS_STORED }
    }
}

impl Product {
    /// A matrix of numbers between −1 and 1 that don't repeat within a row; it has this many rows as it is used.
    fn matrix(&self, rows: usize, columns: usize, transposed: bool) -> Stored {
        let (lines, length) = if transposed { (columns, rows) } else { (rows, columns) };
        let leading = length + self.gap;
        let numbers = (0..lines * leading).map(|i| ((i * i + 7 * i) % 1009) as f32 / 504.5 - 1.0).collect();
        Stored { transposed, leading, numbers }
    }

    /// How far off the library is at most, per summand; NaN or infinite when it computes nonsense.
    fn error(&self) -> f64 {
        let a = self.matrix(self.m, self.k, self.a_transposed);
        let b = self.matrix(self.k, self.n, self.b_transposed);
        let mut before = self.matrix(self.m, self.n, false);
        if self.beta == 0.0 {
            // What was there must not matter then.
            before.numbers.fill(f32::NAN);
        }
        let after = self.compute(&a, &b, &before);
        let cells = (0..self.m).flat_map(|row| (0..self.n).map(move |column| (row, column)));
        let errors = cells.map(|(row, column)| {
            let sum: f64 = (0..self.k).map(|i| a.at(row, i) * b.at(i, column)).sum();
            let kept = if self.beta == 0.0 { 0.0 } else { f64::from(self.beta) * before.at(row, column) };
            (after.at(row, column) - f64::from(self.alpha) * sum - kept).abs()
        });
        // `max` would pass over NaN.
        let largest = errors.fold(0.0, |largest: f64, error| if error <= largest { largest } else { error });
        largest / (self.k + 1) as f64
    }

    fn compute(&self, a: &Stored, b: &Stored, c: &Stored) -> Stored {
        let mut numbers = c.numbers.clone();
        let size = |number: usize| c_int::try_from(number).unwrap_or(c_int::MAX);
        #[expect(unsafe_code, reason = "`matrix` makes each as large as its shape and leading dimension say")]
        unsafe {
            cblas_sgemm(
                BY_ROWS,
                a.order(),
                b.order(),
                size(self.m),
                size(self.n),
                size(self.k),
                self.alpha,
                a.numbers.as_ptr(),
                size(a.leading),
                b.numbers.as_ptr(),
                size(b.leading),
                self.beta,
                numbers.as_mut_ptr(),
                size(c.leading),
            );
        }
        Stored { transposed: false, leading: c.leading, numbers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::Strategy, prop_assert, proptest, sample::select};

    fn products() -> impl Strategy<Value = Product> {
        let size = || select(vec![1, 1, 2, 3, 4, 5, 8, 17, 64, 200]);
        let factor = || select(vec![0.0, 1.0, -0.5]);
        let shape = (size(), size(), size(), 0_usize..3);
        let flags = proptest::array::uniform2(proptest::bool::ANY);
        (shape, flags, factor(), factor()).prop_map(|((m, n, k, gap), [a_transposed, b_transposed], alpha, beta)| {
            Product { m, n, k, a_transposed, b_transposed, alpha, beta, gap }
        })
    }

    proptest! {
        #[test]
        fn a_product_is_what_a_loop_computes(product in products()) {
            let error = product.error();
            prop_assert!(error <= TOLERANCE, "{error}");
        }
    }

    #[test]
    fn weights_as_a_model_has_them() {
        for m in [1, 2, 3, 4, 5, 16, 27, 64] {
            let product = Product { m, n: 1536, k: 512, b_transposed: true, alpha: 1.0, ..Product::default() };
            let error = product.error();
            assert!(error <= TOLERANCE, "{m} rows: {error}");
        }
    }

    #[test]
    fn products_of_a_few_rows_are_put_together_from_their_parts() {
        for (m, n, k) in
            [(2, 61, 9_000), (3, 700, 2_100), (7, 200, 4_097), (16, 333, 2_048), (24, 17, 6_000), (32, 333, 4_100)]
        {
            for [a_transposed, b_transposed] in [[false, true], [false, false], [true, true]] {
                for beta in [0.0, 0.5] {
                    let product = Product { m, n, k, a_transposed, b_transposed, alpha: -0.5, beta, gap: 3 };
                    let error = product.error();
                    assert!(error <= TOLERANCE, "{product:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn without_summands_what_was_there_is_scaled() {
        for m in [1, 2] {
            let product = Product { m, n: 3, k: 0, alpha: 1.0, beta: 0.5, gap: 1, ..Product::default() };
            assert!(product.error() <= TOLERANCE);
        }
    }

    #[test]
    fn the_kernels_have_a_name_and_are_right() {
        assert!(!core().is_empty());
        assert!(version().starts_with("0."), "{}", version());
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn a_wrong_product_names_the_core_and_the_remedy() {
        let said = WrongProduct { core: "Cooperlake".to_owned(), rows: 3, error: 0.5 }.to_string();
        assert!(said.contains("Cooperlake") && said.contains("OPENBLAS_CORETYPE"), "{said}");
    }
}
