//! A page of `alipc explain`, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::dearest::Dearest;
use super::page::{Kernel, Page, Readers};
use crate::figures::{duration, grouped, in_buckets, operations, rewritten, size};

pub(super) fn text(page: &Page) -> String {
    let mut text = format!("{} for {}: {}\n\n", page.name, page.target, page.program);
    decisions(&mut text, page);
    match page.node {
        None => {
            overview(&mut text, page);
            page.dearest.iter().for_each(|dearest| dear(&mut text, dearest));
        }
        Some(_) => page.kernels.iter().for_each(|kernel| one(&mut text, kernel)),
    }
    text
}

/// What was done to the graph before there were kernels, and what was not and why.
fn decisions(text: &mut String, page: &Page) {
    let before = text.len();
    page.rewrites.iter().for_each(|applied| text.push_str(&rewritten(applied)));
    let lifted = counted(page.lifted.iter().map(|lifted| format!("{:13} in {}", lifted.what, at(&lifted.path))));
    for (what, count) in lifted {
        let _ = writeln!(text, "lifted        {count:>3} x {what}");
    }
    let missed = counted(page.not_lifted.iter().map(|missed| {
        let place = if missed.place.is_empty() { String::new() } else { format!(", {}", missed.place) };
        format!("{} in {}{place}: {}", missed.like, at(&missed.path), missed.why)
    }));
    for (what, count) in missed {
        let _ = writeln!(text, "not lifted    {count:>3} x {what}");
    }
    for unpacked in &page.not_packed {
        let _ = writeln!(text, "not packed    {}: {}", at(&unpacked.path), unpacked.why);
    }
    for rule in &page.rules {
        let places = counted(rule.paths.iter().map(|path| at(path)));
        let places: Vec<String> = places.into_iter().map(|(place, count)| format!("{count} x {place}")).collect();
        let _ = writeln!(text, "rule          {} ({}): {}", rule.rule, rule.theme, places.join(", "));
    }
    if let Some(last) = page.buckets.last() {
        text.push_str(&in_buckets("by rows", &page.buckets));
        let rows: Vec<String> = last.rows.iter().map(|rows| grouped(*rows)).collect();
        let _ = writeln!(text, "{:14}those of {} rows", "kernels", rows.join(" + "));
    }
    if text.len() > before {
        text.push('\n');
    }
}

/// A path as the layers of a stack share it.
fn at(path: &str) -> String {
    if path.is_empty() { "the graph itself".into() } else { format!("`{}`", alike(path)) }
}

fn counted(lines: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    lines.fold(BTreeMap::new(), |mut counts, line| {
        *counts.entry(line).or_default() += 1;
        counts
    })
}

/// Kernels by the application they belong to; layers of a stack count together.
fn overview(text: &mut String, page: &Page) {
    #[derive(Default)]
    struct Sum {
        kernels: u64,
        flops: u64,
        bytes: u64,
    }
    let mut places: BTreeMap<String, Sum> = BTreeMap::new();
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for kernel in &page.kernels {
        let sum = places.entry(alike(&kernel.path)).or_default();
        sum.kernels += 1;
        sum.flops += kernel.flops;
        sum.bytes += kernel.bytes;
        let readers = kernel.stores.iter().flat_map(|stored| &stored.readers);
        let of_kernel: BTreeSet<String> = readers.map(|readers| alike(&readers.why)).collect();
        of_kernel.into_iter().for_each(|why| *reasons.entry(why).or_default() += 1);
    }
    let width = places.keys().map(String::len).max().unwrap_or(0).max("(top level)".len());
    let _ = writeln!(text, "{:width$}  {:>7}  {:>14}  {:>12}", "where", "kernels", "operations", "bytes");
    let mut places: Vec<(String, Sum)> = places.into_iter().collect();
    places.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.flops));
    for (path, sum) in &places {
        let path = if path.is_empty() { "(top level)" } else { path };
        let (kernels, flops, bytes) = (grouped(sum.kernels), operations(sum.flops), size(sum.bytes));
        let _ = writeln!(text, "{path:width$}  {kernels:>7}  {flops:>14}  {bytes:>12}");
    }
    let total = |of: fn(&Sum) -> u64| places.iter().map(|(_, sum)| of(sum)).sum::<u64>();
    let (kernels, flops, bytes) = (total(|sum| sum.kernels), total(|sum| sum.flops), total(|sum| sum.bytes));
    let (count, flops, bytes) = (grouped(kernels), operations(flops), size(bytes));
    let _ = writeln!(text, "{:width$}  {count:>7}  {flops:>14}  {bytes:>12}", "all");
    if page.launches < kernels {
        let launches = grouped(page.launches);
        let _ = writeln!(text, "\n{launches} launches: kernels that do the same to neighbours in memory are one");
    }
    let _ = writeln!(text, "\nkernels  that store a value for a later one because");
    let mut reasons: Vec<(String, u64)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (why, count) in reasons {
        let _ = writeln!(text, "{:>7}  {why}", grouped(count));
    }
}

/// Kernels whose prediction is shown.
const DEAREST: usize = 10;

/// The launches that take longest.
fn dear(text: &mut String, dearest: &Dearest) {
    let rows: Vec<String> = dearest.rows.iter().map(|rows| grouped(*rows)).collect();
    let of = if rows.is_empty() { String::new() } else { format!(", of {} rows", rows.join(" + ")) };
    let (total, launches) = (duration(dearest.seconds), grouped(dearest.launches));
    let _ = writeln!(text, "\npredicted  {total} for {launches} launches{of}; those that take longest:");
    let _ =
        writeln!(text, "{:>9}  {:>8}  {:>7}  {:>14}  {:>12}  of", "time", "share", "launches", "operations", "bytes");
    for one in dearest.kernels.iter().take(DEAREST) {
        let (flops, bytes) = (operations(one.flops), size(one.bytes));
        let share = 100.0 * one.seconds / dearest.seconds.max(f64::MIN_POSITIVE);
        let (time, launches) = (duration(one.seconds), grouped(one.launches));
        let _ = writeln!(
            text,
            "{time:>9}  {share:>6.1} %  {launches:>8}  {flops:>14}  {bytes:>12}  {} {}  {}",
            one.kind,
            one.sizes,
            at(&one.path)
        );
    }
}

/// Numbers replaced by `*`, so that the layers of a stack and equal reasons at other sizes fall together.
pub(super) fn alike(text: &str) -> String {
    let mut out = String::new();
    let mut word = false;
    for c in text.chars() {
        if c.is_ascii_digit() && !word {
            if !out.ends_with('*') {
                out.push('*');
            }
        } else {
            out.push(c);
            // `ln_1` and `text#2` are names, `resblocks.3` and `[16, 50]` are not.
            word = c.is_alphanumeric() || c == '_' || c == '#';
        }
    }
    out
}

fn one(text: &mut String, kernel: &Kernel) {
    let Kernel { number, kind, kept, reduced, .. } = kernel;
    let domain = if reduced.is_empty() { format!("{kept:?}") } else { format!("{kept:?} x {reduced:?}") };
    let (flops, bytes) = (operations(kernel.flops), size(kernel.bytes));
    let _ = writeln!(text, "kernel {number}: {kind} over {domain}, {flops}, {bytes}");
    for computed in &kernel.computes {
        let elsewhere = if computed.inside { String::new() } else { format!("  (of `{}`)", computed.path) };
        let _ = writeln!(text, "    computes  {}{elsewhere}", computed.what);
    }
    for read in &kernel.reads {
        let _ = writeln!(text, "    reads     {read}");
    }
    for stored in &kernel.stores {
        let _ = writeln!(text, "    stores    {}", stored.what);
        for Readers { why, kernels, path } in &stored.readers {
            let _ = match kernels.as_slice() {
                [one] => writeln!(text, "              for kernel {one} (`{path}`): {why}"),
                [first, rest @ ..] => {
                    let more = rest.len();
                    writeln!(text, "              for kernel {first} (`{path}`) and {more} more: {why}")
                }
                [] => Ok(()),
            };
        }
    }
    text.push('\n');
}
