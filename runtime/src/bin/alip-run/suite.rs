//! `alip-run eval --suite`: a model on the data sets of a suite.

use std::cell::RefCell;
use std::path::Path;
use std::process::ExitCode;

use alip_runtime::eval::features::Store;
use alip_runtime::eval::measures::Logits;
use alip_runtime::eval::protocol::{self, Protocol};
use alip_runtime::eval::results::{Found, Line, SuiteResults, Table};
use alip_runtime::eval::suite::{Published, Suite};
use alip_runtime::eval::{Encoder, Reading};
use alip_runtime::file::write_bytes;
use alip_runtime::run::RunDir;
use alip_runtime::train::report::{self, Picture};

use crate::eval::{Args, results_folder};
use crate::progress::Counter;
use crate::stop::Stop;
use crate::{Failure, Outcome};

/// Measures the model of a run on the suite that was named.
pub(crate) fn run(args: &Args, suite: &str) -> Outcome {
    let stop = Stop::listen("stopping")?;
    let suite = Suite::open(suite)?;
    let published = Published::open()?;
    let root = args.data.as_deref().ok_or_else(|| {
        let why =
            "give the folder that its data sets lie in with --data ROOT; docs/evaluation.md says how they are called";
        Failure::message(format!("the suite `{}` is measured on data sets: {why}", suite.name))
    })?;
    let root = Path::new(root);
    if !root.is_dir() {
        return Err(Failure::message(format!("--data {}: no such folder", root.display())));
    }
    let sets = protocol::open(&suite, root)?;
    let images = sets.iter().map(protocol::Opened::images).max().unwrap_or_default();
    let mut opened = args.weights.open(&args.run, images)?;
    let tokenizer = opened.tokenizer()?;
    let model = format!("{} {}", opened.name, opened.content);
    let counter = RefCell::new(Counter::of("image"));
    let of = RefCell::new(0);
    let begins = |what: &str, count: usize| {
        counter.borrow().finish();
        let numbered = if count > 0 { format!(", {count}") } else { String::new() };
        note!("{what}{numbered}");
        *counter.borrow_mut() = Counter::of(if what.ends_with("texts") { "text" } else { "image" });
        *of.borrow_mut() = count as u64;
        counter.borrow_mut().at(0, count as u64);
    };
    let logits = if args.published_rounding { Logits::Whole } else { Logits::Exact };
    let how = Protocol {
        preparation: &opened.preparation,
        tokenizer: &tokenizer,
        reading: Reading {
            vocabularies: &opened.vocabularies,
            workers: crate::train::default_workers() as usize,
            max_bad: args.bad.max_bad,
            stop: stop.flag(),
            skipped: &|skipped| counter.borrow().note(&format!("left out {skipped}")),
            progress: &|done| counter.borrow_mut().at(done as u64, *of.borrow()),
        },
        logits,
        store: args.features.as_deref().map(|folder| (Store { folder }, model.as_str())),
        begins: &begins,
    };
    let mut encoder = Encoder::new(&mut opened.session)?;
    let mut found = Vec::new();
    for set in &sets {
        let measured = protocol::evaluate(&mut encoder, set, &how);
        counter.borrow().finish();
        match measured {
            Ok(results) => found.push(results),
            Err(error) if error.is_stop() => {
                note!("not measured; features that were kept with --features are used the next time");
                return Ok(stop.status());
            }
            // What is wrong with one set loses none of the others.
            Err(error) => {
                note!("error: {error}");
                found.push(set.failed(&error));
            }
        }
    }
    let failed = found.iter().any(|set| matches!(set.found, Found::Failed(_)));
    if failed && !found.iter().any(|set| matches!(set.found, Found::Measured(_))) {
        return Ok(ExitCode::FAILURE);
    }
    let results = SuiteResults::new(&suite, found, (&opened.name, opened.step), args.weights.average, logits);
    let table = results.table(&published);
    let run = args.run.is_dir().then(|| RunDir::open(&args.run)).transpose()?;
    let out = &results_folder(args, run.as_ref());
    let name = file_name(&results);
    let saved = std::fs::create_dir_all(out)
        .map_err(|error| Failure::message(format!("{}: {error}", out.display())))
        .and_then(|()| Ok(write_bytes(&out.join(format!("{name}.json")), results.json().to_string().as_bytes())?));
    // Results are shown also where a disk refuses them.
    if args.json {
        say!("{}", results.json());
    } else {
        say!("{}: {}", suite.name, results.model());
        say!("{}", text(&results, &table).trim_end());
    }
    saved?;
    let page = out.join(format!("{name}.html"));
    let picture = |set: &str, image: u64| {
        let source = sets.iter().find(|opened| opened.name() == set)?.source()?;
        source.sample(image).ok()?.fields.values().find_map(Picture::of)
    };
    report::suite::write(&results, &table, &picture, &page)?;
    if !args.json {
        say!("report: {}", page.display());
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What files of results are called, by what makes them other results.
fn file_name(results: &SuiteResults) -> String {
    let average = if results.average { "-average" } else { "" };
    let rounded = if results.logits == Logits::Whole { "-published-rounding" } else { "" };
    format!("suite-{}{average}{rounded}", results.suite)
}

/// Results as lines, with published figures beside them.
fn text(results: &SuiteResults, table: &Table) -> String {
    let width = |of: fn(&Line) -> &String| table.lines.iter().map(|line| of(line).chars().count()).max().unwrap_or(0);
    let (first, second) = (width(|line| &line.title), width(|line| &line.figure));
    let names: Vec<(&str, &str)> =
        table.methods.iter().map(|method| method.rsplit_once(' ').unwrap_or((method, ""))).collect();
    let column = |(method, backbone): &(&str, &str)| method.chars().count().max(backbone.chars().count());
    let mut out = String::new();
    for heads in 0..2 {
        let (own, chance) = if heads == 0 { ("this", "chance") } else { ("model", "") };
        out += &format!("  {:first$}  {:second$}  {own:>7}  {chance:>6}", "", "");
        for names in &names {
            out += &format!("  {:>width$}", if heads == 0 { names.0 } else { names.1 }, width = column(names));
        }
        out = out.trim_end().to_string() + "\n";
    }
    for Line { title, figure, value, chance, published } in &table.lines {
        out += &format!("  {title:first$}  {figure:second$}  ");
        match value {
            Err(why) => out += why,
            Ok(value) => {
                let chance = chance.map_or_else(String::new, |chance| format!("{:.1}", 100.0 * chance));
                out += &format!("{:>5.1} %  {chance:>6}", 100.0 * value);
                for (names, theirs) in names.iter().zip(published) {
                    let theirs = theirs.map_or_else(|| "-".into(), |theirs| format!("{theirs:.1}"));
                    out += &format!("  {theirs:>width$}", width = column(names));
                }
            }
        }
        out = out.trim_end().to_string() + "\n";
    }
    for (methods, source) in &table.sources {
        out += &format!("{}: {source}\n", methods.join(", "));
    }
    for (title, remark) in results.remarks() {
        out += &format!("{title}: {remark}\n");
    }
    if let Some(caution) = results.caution() {
        out += &format!("{caution}\n");
    }
    out
}
