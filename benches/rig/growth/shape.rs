//! Whether a curve is flat, linear, or worse.

use std::fmt;

use anyhow::{Result, ensure};

/// What still passes for flat, and for a straight line: the largest against the smallest, and points against the line.
const FLAT: f64 = 1.15;
const STRAIGHT: f64 = 0.25;
/// The largest exponent that is no growth of its own.
const EXPONENT: f64 = 1.15;
/// How far apart exponents are that are about the same.
const ALIKE: f64 = 0.1;

/// What a curve looks like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    Flat,
    /// `base + slope · x`, and how far the farthest point is from it, as a share of it.
    Linear {
        base: f64,
        slope: f64,
        off: f64,
    },
    /// It grows by less than a straight line would.
    Slower {
        exponent: f64,
    },
    /// It grows by more.
    Faster {
        exponent: f64,
    },
}

/// `base + slope · x^exponent`, neither negative, by least squares of what points are off as a share of themselves.
fn fit(points: &[(f64, f64)], exponent: f64) -> (f64, f64, f64) {
    let [mut ones, mut mixed, mut squares, mut left, mut right] = [0.0; 5];
    for (x, y) in points {
        let (one, power) = (1.0 / y, x.powf(exponent) / y);
        ones += one * one;
        mixed += one * power;
        squares += power * power;
        left += one;
        right += power;
    }
    let determinant = ones * squares - mixed * mixed;
    let (mut base, mut slope) =
        ((left * squares - right * mixed) / determinant, (ones * right - mixed * left) / determinant);
    if base < 0.0 {
        (base, slope) = (0.0, right / squares);
    } else if slope < 0.0 {
        (base, slope) = (left / ones, 0.0);
    }
    let off = points.iter().map(|(x, y)| ((base + slope * x.powf(exponent)) / y - 1.0).powi(2)).sum();
    (base, slope, off)
}

impl Shape {
    /// Of points by rising x, of which at least three are needed to say anything.
    pub fn of(points: &[(f64, f64)]) -> Self {
        let smallest = points.iter().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
        let largest = points.iter().map(|(_, y)| *y).fold(0.0, f64::max);
        if largest <= smallest * FLAT || points.len() < 3 {
            return Self::Flat;
        }
        let (base, slope, _) = fit(points, 1.0);
        let off = points.iter().map(|(x, y)| ((base + slope * x) / y - 1.0).abs()).fold(0.0, f64::max);
        if off <= STRAIGHT {
            return Self::Linear { base, slope, off };
        }
        let exponents = (1..=60).map(|step| f64::from(step) * 0.05);
        let best = exponents.min_by(|one, other| fit(points, *one).2.total_cmp(&fit(points, *other).2));
        let exponent = best.unwrap_or_default();
        if exponent <= EXPONENT { Self::Slower { exponent } } else { Self::Faster { exponent } }
    }

    /// Whether it is flat or linear at most.
    pub fn is_good(self) -> bool {
        !matches!(self, Self::Faster { .. })
    }

    /// Whether both grow faster than linear, and by about the same.
    pub fn is_about(self, other: Self) -> bool {
        match (self, other) {
            (Self::Faster { exponent: one }, Self::Faster { exponent: other }) => (one - other).abs() <= ALIKE,
            _ => false,
        }
    }

    /// Looks at curves that are known. There are no tests of benchmarks, and a measure that calls everything straight
    /// would be worth nothing.
    pub fn check() -> Result<()> {
        let curve = |what: fn(f64) -> f64| [1.0, 10.0, 100.0, 1e3, 1e4].map(|x| (x, what(x)));
        let of = |what: fn(f64) -> f64| Self::of(&curve(what));
        ensure!(of(|x| 100.0 + x.sin()) == Self::Flat, "a flat curve isn't");
        ensure!(matches!(of(|x| 100.0 + 0.3 * x), Self::Linear { .. }), "a straight line isn't");
        ensure!(matches!(of(|x| 100.0 + 60.0 * x.log10()), Self::Slower { .. }), "a logarithm isn't slower");
        for what in [|x: f64| 100.0 + 1e-4 * x * x, |x: f64| 1.0 + x.powf(1.4)] {
            ensure!(matches!(of(what), Self::Faster { .. }), "a curve that is worse isn't: {:?}", of(what));
        }
        Ok(())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flat => write!(formatter, "flat"),
            Self::Linear { base, slope, off } => {
                write!(formatter, "linear: {base:.1} + {slope:.3e} x, within {:.0} %", off * 100.0)
            }
            Self::Slower { exponent } => write!(formatter, "slower than linear, as x^{exponent:.2}"),
            Self::Faster { exponent } => write!(formatter, "FASTER than linear, as x^{exponent:.2}"),
        }
    }
}
