//! Charts as inline SVG. Colours come from the page's style sheet, so that they follow light and dark.

use super::{Chart, Series, escape};
use crate::eval::measures::Histogram;
use std::fmt::Write;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 34.0;

/// More points than this are averaged: a screen shows no more.
const MAX_POINTS: usize = 400;

/// The number of series colours in the style sheet.
const COLOURS: usize = 5;

/// A linear map of values to positions along an axis, with its ticks.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// An axis over at least `low..high`, widened to round numbers when `round`.
    fn new(low: f64, high: f64, from: f64, to: f64, round: bool) -> Axis {
        // A flat series still needs a height.
        let size = low.abs().max(high.abs());
        let pad = if size > 0.0 { size / 2.0 } else { 0.5 };
        let (low, high) = if high - low > 1e-9 * size { (low, high) } else { (low - pad, high + pad) };
        let step = round_step((high - low) / 4.0);
        let (low, high) = if round { ((low / step).floor() * step, (high / step).ceil() * step) } else { (low, high) };
        Axis { low, high, from, to, step }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (first, last) = ((self.low / self.step - 1e-6).ceil(), (self.high / self.step + 1e-6).floor());
        let step = self.step;
        // At most spread / step + 1 of them, which is about five.
        (0..=(last - first).clamp(0.0, 20.0) as usize).map(move |n| (first + n as f64) * step)
    }
}

/// 1, 2 or 5 times a power of ten, at least `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= raw * 0.999).unwrap_or(raw)
}

fn tick_label(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    if value.abs() >= 1e6 || (step < 1e-3 && value != 0.0) {
        return format!("{value:.0e}");
    }
    if step >= 1000.0 {
        return format!("{}k", value / 1000.0);
    }
    let digits = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

fn open(svg: &mut String, label: &str) {
    let label = escape(label);
    let _ = write!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
}

fn draw_axes(svg: &mut String, x: &Axis, y: &Axis, x_name: &str) {
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--grid)\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            tick_label(tick, y.step)
        );
    }
    for tick in x.ticks() {
        let (at, below) = (x.at(tick), HEIGHT - BOTTOM + 15.0);
        let label = tick_label(tick, x.step);
        let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{label}</text>");
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 4.0,
        escape(x_name)
    );
}

fn legend(names: impl Iterator<Item = String>) -> String {
    let items = names.enumerate().map(|(rank, name)| {
        format!("<span><i style=\"background:var(--s{})\"></i>{}</span>", rank % COLOURS, escape(&name))
    });
    format!("<div class=\"legend\">{}</div>", items.collect::<String>())
}

/// A line chart over steps.
pub(super) fn lines(chart: &Chart) -> String {
    let mut out = format!("<figure class=\"card\"><h3>{}</h3>", escape(&chart.title));
    if chart.series.len() > 1 {
        out += &legend(chart.series.iter().map(|series| series.name.clone()));
    }
    let finite: Vec<(f64, f64)> =
        chart.series.iter().flat_map(|s| &s.points).copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    if finite.is_empty() {
        return out + "<p class=\"soft\">No finite values.</p></figure>";
    }
    let ends = |values: fn(&(f64, f64)) -> f64| {
        let ends = (f64::INFINITY, f64::NEG_INFINITY);
        finite.iter().map(values).fold(ends, |(low, high), value| (low.min(value), high.max(value)))
    };
    let ((left, right), (bottom, top)) = (ends(|p| p.0), ends(|p| p.1));
    let x = Axis::new(left, right, LEFT, WIDTH - RIGHT, false);
    let y = Axis::new(bottom, top, HEIGHT - BOTTOM, TOP, true);
    open(&mut out, &chart.title);
    draw_axes(&mut out, &x, &y, "step");
    let mut per_point = 1;
    for (rank, series) in chart.series.iter().enumerate() {
        per_point = per_point.max(series.points.len().div_ceil(MAX_POINTS));
        let _ = write!(
            out,
            "<path d=\"{}\" fill=\"none\" stroke=\"var(--s{})\" stroke-width=\"1.8\" stroke-linejoin=\"round\" \
             stroke-linecap=\"round\"/>",
            path(series, &x, &y),
            rank % COLOURS
        );
    }
    out += "</svg>";
    if per_point > 1 {
        let _ = write!(out, "<figcaption class=\"label\">each point is the mean of {per_point} values</figcaption>");
    }
    out + "</figure>"
}

/// The line of a series; a value that is not finite leaves a gap.
fn path(series: &Series, x: &Axis, y: &Axis) -> String {
    let per_point = series.points.len().div_ceil(MAX_POINTS).max(1);
    let mut path = String::new();
    let mut pen_is_down = false;
    for group in series.points.chunks(per_point) {
        let count = group.len() as f64;
        let (step, value) = group.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / count, sum.1 + p.1 / count));
        if !(step.is_finite() && value.is_finite()) {
            pen_is_down = false;
            continue;
        }
        let _ = write!(path, "{}{:.1} {:.1}", if pen_is_down { "L" } else { "M" }, x.at(step), y.at(value));
        pen_is_down = true;
    }
    path
}

/// Two histograms over the same bins, side by side, each as a share of its own group.
pub(super) fn histograms(title: &str, x_name: &str, groups: &[(&str, &Histogram)]) -> String {
    let total = |histogram: &Histogram| histogram.counts.iter().sum::<usize>();
    let share = |histogram: &Histogram, count: usize| count as f64 / total(histogram).max(1) as f64;
    let Some((low, high)) = groups.first().map(|(_, histogram)| (histogram.low, histogram.high)) else {
        return String::new();
    };
    let tallest =
        groups.iter().flat_map(|(_, h)| h.counts.iter().map(|&count| share(h, count))).fold(0.0, f64::max).max(0.01);
    let x = Axis::new(low, high, LEFT, WIDTH - RIGHT, false);
    let y = Axis::new(0.0, 100.0 * tallest, HEIGHT - BOTTOM, TOP, true);
    let mut out = format!("<figure class=\"card alone\"><h3>{}</h3>", escape(title));
    out += &legend(groups.iter().map(|(name, histogram)| format!("{name} ({})", total(histogram))));
    open(&mut out, title);
    draw_axes(&mut out, &x, &y, x_name);
    for (rank, (_, histogram)) in groups.iter().enumerate() {
        let bin = (x.to - x.from) / histogram.counts.len() as f64;
        let bar = (bin - 2.0) / groups.len() as f64;
        for (place, &count) in histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let top = y.at(100.0 * share(histogram, count));
            let _ = write!(
                out,
                "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{bar:.1}\" height=\"{:.1}\" fill=\"var(--s{rank})\"/>",
                x.from + place as f64 * bin + 1.0 + rank as f64 * bar,
                y.from - top
            );
        }
    }
    out + "</svg><figcaption class=\"label\">vertical: per cent of the group</figcaption></figure>"
}

/// A bar from 0 to `value`, a thin one below for `other`, and a mark at `chance`; all are shares, 0 to 1.
pub(super) fn bar(value: f64, other: Option<f64>, chance: f64) -> String {
    let width = |share: f64| 100.0 * if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let height = if other.is_some() { 8 } else { 12 };
    let mut svg = String::from("<svg viewBox=\"0 0 100 16\" preserveAspectRatio=\"none\" aria-hidden=\"true\">");
    let _ = write!(
        svg,
        "<rect width=\"100\" height=\"16\" fill=\"var(--grid)\"/>\
         <rect y=\"2\" width=\"{:.2}\" height=\"{height}\" fill=\"var(--s0)\"/>",
        width(value)
    );
    if let Some(other) = other {
        let _ = write!(svg, "<rect y=\"11\" width=\"{:.2}\" height=\"3\" fill=\"var(--s1)\"/>", width(other));
    }
    let at = width(chance).min(99.2);
    let _ = write!(svg, "<rect x=\"{at:.2}\" width=\"0.8\" height=\"16\" fill=\"var(--chance)\"/></svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_round_numbers_inside_the_axis() {
        for (low, high) in [(0.0, 1.0), (-3.7, 5.2), (0.0, 1e-4), (1e5, 2.5e6), (4.2, 4.2), (0.0, 0.0)] {
            let axis = Axis::new(low, high, 0.0, 100.0, true);
            let ticks: Vec<f64> = axis.ticks().collect();
            assert!((2..=8).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            assert!(axis.low <= low && axis.high >= high);
            assert!(ticks.iter().all(|&t| (-0.01..100.01).contains(&axis.at(t))), "{low}..{high}: {ticks:?}");
        }
    }

    #[test]
    fn labels_are_short() {
        let check = |value, step, label| assert_eq!(tick_label(value, step), label);
        check(0.25, 0.05, "0.25");
        check(-0.0, 0.5, "0.0");
        check(3.0, 1.0, "3");
        check(2000.0, 1000.0, "2k");
    }

    #[test]
    fn a_value_that_is_not_finite_leaves_a_gap() {
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 2.0)];
        let axis = |from, to| Axis::new(0.0, 3.0, from, to, false);
        let path = path(&Series { name: String::new(), points }, &axis(0.0, 30.0), &axis(30.0, 0.0));
        assert_eq!(path, "M0.0 20.0M20.0 0.0L30.0 10.0");
    }
}
