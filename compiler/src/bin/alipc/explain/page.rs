//! What `alipc explain` shows, as data: of a whole program, or of what is inside one application.

use std::collections::BTreeMap;

use alip_compiler::CompiledSpec;
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{NodeId, Origin, describe};
use alip_compiler::ops::Op;
use alip_compiler::optimize::rule_names;
use alip_compiler::schedule::{self, Explanation, computes};
use alip_compiler::transform::Applied;
use alip_compiler::transform::packing::PACKING;
use alip_plan::BucketReport;
use serde::Serialize;

use super::dearest::Dearest;

/// Everything about a program, or about a part of it.
#[derive(Serialize)]
pub(super) struct Page {
    pub(super) name: String,
    pub(super) target: String,
    pub(super) program: String,
    /// The application that it is about; none for all.
    pub(super) node: Option<String>,
    /// Rewrites of the whole graph that were done here.
    pub(super) rewrites: Vec<Applied>,
    /// What became a semantic op.
    pub(super) lifted: Vec<Lifted>,
    /// What looked like one, and what stopped it.
    pub(super) not_lifted: Vec<Missed>,
    /// What kept rows from being packed.
    pub(super) not_packed: Vec<Unpacked>,
    /// Rules of the e-graph whose results were taken.
    pub(super) rules: Vec<Fired>,
    /// Of a packed program: its size for each number of rows. Kernels are those of the last.
    pub(super) buckets: Vec<BucketReport>,
    /// Launches of the program; fewer than kernels where several that do the same became one.
    pub(super) launches: u64,
    /// What its launches are predicted to take; of a whole program only.
    pub(super) dearest: Option<Dearest>,
    pub(super) kernels: Vec<Kernel>,
}

#[derive(Serialize)]
pub(super) struct Lifted {
    pub(super) what: &'static str,
    pub(super) path: String,
}

#[derive(Serialize)]
pub(super) struct Missed {
    pub(super) like: &'static str,
    pub(super) path: String,
    /// File, line and column.
    pub(super) place: String,
    pub(super) why: String,
}

#[derive(Serialize)]
pub(super) struct Unpacked {
    pub(super) path: String,
    pub(super) why: String,
}

#[derive(Serialize)]
pub(super) struct Fired {
    pub(super) rule: &'static str,
    pub(super) theme: &'static str,
    pub(super) paths: Vec<String>,
}

/// A kernel as it was scheduled.
#[derive(Serialize)]
pub(super) struct Kernel {
    pub(super) number: usize,
    pub(super) kind: &'static str,
    /// Sizes of its loop, kept dimensions and reduced ones.
    pub(super) kept: Vec<u64>,
    pub(super) reduced: Vec<u64>,
    pub(super) flops: u64,
    pub(super) bytes: u64,
    /// The application of the last value it stores.
    pub(super) path: String,
    pub(super) computes: Vec<Computed>,
    pub(super) reads: Vec<String>,
    pub(super) stores: Vec<Stored>,
}

#[derive(Serialize)]
pub(super) struct Computed {
    pub(super) what: String,
    pub(super) path: String,
    /// Whether it is inside what the page is about.
    #[serde(skip)]
    pub(super) inside: bool,
}

#[derive(Serialize)]
pub(super) struct Stored {
    pub(super) what: String,
    /// Why it is not computed in the kernels that read it.
    pub(super) readers: Vec<Readers>,
}

/// Kernels for which a value is stored for the same reason.
#[derive(Serialize)]
pub(super) struct Readers {
    pub(super) why: String,
    /// Their numbers, and the paths of the first.
    pub(super) kernels: Vec<usize>,
    pub(super) path: String,
}

/// Whether one path is another or lies inside it; everything is inside of no path.
fn inside(path: &str, node: Option<&str>) -> bool {
    node.is_none_or(|node| path == node || path.strip_prefix(node).is_some_and(|rest| rest.starts_with('.')))
}

impl Page {
    pub(super) fn new(
        compiled: &CompiledSpec,
        sources: &SourceMap,
        name: &str,
        program: &Explanation,
        node: Option<&str>,
    ) -> Page {
        let rewrites = &compiled.rewrites;
        let here = |of: &str, origin: &Origin| of == name && inside(&origin.path, node);
        let lifted = rewrites.lifted.iter().filter(|lifted| here(&lifted.program, &lifted.origin));
        let missed = rewrites.missed.iter().filter(|missed| here(&missed.program, &missed.origin));
        let place = |origin: &Origin| origin.span.map_or_else(String::new, |span| sources.place(span));
        let unpacked = rewrites.unpacked.iter().filter(|(of, stopped)| of == name && inside(&stopped.at, node));
        let report = compiled.plan.as_ref().and_then(|plan| plan.report.programs.get(name)).cloned();
        let report = report.unwrap_or_default();
        let mut page = Page {
            name: compiled.model.name.clone(),
            target: compiled.plan.as_ref().map_or_else(String::new, |plan| plan.target.name.clone()),
            program: name.into(),
            node: node.map(str::to_owned),
            rewrites: Vec::new(),
            lifted: lifted.map(|lifted| Lifted { what: lifted.what, path: lifted.origin.path.to_string() }).collect(),
            not_lifted: missed
                .map(|missed| Missed {
                    like: missed.like,
                    path: missed.origin.path.to_string(),
                    place: place(&missed.origin),
                    why: missed.why.clone(),
                })
                .collect(),
            not_packed: unpacked
                .map(|(_, stopped)| Unpacked { path: stopped.at.clone(), why: stopped.why.clone() })
                .collect(),
            rules: fired(compiled, name, node),
            buckets: report.buckets,
            launches: report.launches,
            dearest: None,
            kernels: kernels(program, node),
        };
        let packed = page.kernels.iter().any(|kernel| kernel.computes.iter().any(|computed| is_packed(&computed.what)));
        let touches = |place: &String| node.is_none_or(|node| inside(place, Some(node)) || inside(node, Some(place)));
        let was_done = |applied: &&Applied| match node {
            Some(_) if applied.rewrite == PACKING => packed,
            _ => applied.places.iter().flat_map(|places| places.split(", ")).any(|place| touches(&place.to_owned())),
        };
        let of_program = rewrites.applied.iter().filter(|applied| applied.program == name);
        page.rewrites = of_program.filter(was_done).cloned().collect();
        if node.is_some() && !packed {
            page.buckets.clear();
        }
        page
    }

    /// Whether there is nothing to say.
    pub(super) fn is_empty(&self) -> bool {
        self.kernels.is_empty() && self.lifted.is_empty() && self.not_lifted.is_empty() && self.rules.is_empty()
    }
}

/// Whether an operation has packed rows: the rewrite names their dimension.
fn is_packed(what: &str) -> bool {
    what.contains("[rows=")
}

fn fired(compiled: &CompiledSpec, name: &str, node: Option<&str>) -> Vec<Fired> {
    let themes: BTreeMap<&str, &'static str> = rule_names().into_iter().map(|(theme, rule)| (rule, theme)).collect();
    let reports = compiled.optimized.programs.iter().filter(|(program, _)| program == name);
    let mut all = Vec::new();
    for (rule, paths) in reports.flat_map(|(_, report)| &report.fired) {
        let paths: Vec<String> = paths.iter().filter(|path| inside(path, node)).cloned().collect();
        if !paths.is_empty() {
            all.push(Fired { rule, theme: themes.get(rule).copied().unwrap_or_default(), paths });
        }
    }
    all
}

fn kernels(program: &Explanation, node: Option<&str>) -> Vec<Kernel> {
    let graph = &program.graph;
    let is_inside = |id: &NodeId| inside(&graph.origin(*id).path, node);
    let shown = |kernel: &schedule::Explained| {
        let computed = kernel.covers.iter().any(|id| is_inside(id) && computes(&graph.node(*id).op));
        node.is_none() || computed || kernel.stores.iter().any(is_inside)
    };
    let numbered = program.kernels.iter().enumerate().filter(|(_, kernel)| shown(kernel));
    let one = |(number, kernel): (usize, &schedule::Explained)| {
        let computed = kernel.covers.iter().filter(|id| computes(&graph.node(**id).op));
        let (kept, reduced) = kernel.domain.clone();
        Kernel {
            number,
            kind: kernel.kind,
            kept,
            reduced,
            flops: kernel.flops,
            bytes: kernel.bytes,
            path: home(program, number),
            computes: computed
                .map(|id| Computed {
                    what: describe(graph, *id),
                    path: graph.origin(*id).path.to_string(),
                    inside: is_inside(id),
                })
                .collect(),
            reads: kernel.reads.iter().map(|id| named(program, *id)).collect(),
            stores: kernel.stores.iter().map(|id| stored(program, kernel, *id)).collect(),
        }
    };
    numbered.map(one).collect()
}

fn stored(program: &Explanation, kernel: &schedule::Explained, id: NodeId) -> Stored {
    let mut readers: Vec<Readers> = Vec::new();
    for (_, reader, why) in kernel.blocked.iter().filter(|(value, _, _)| *value == id) {
        match readers.iter_mut().find(|readers| readers.why == *why) {
            Some(readers) => readers.kernels.push(*reader),
            None => {
                let path = home(program, *reader);
                readers.push(Readers { why: why.clone(), kernels: vec![*reader], path });
            }
        }
    }
    Stored { what: named(program, id), readers }
}

/// The application of the last value a kernel stores.
fn home(program: &Explanation, kernel: usize) -> String {
    let last = program.kernels.get(kernel).and_then(|kernel| kernel.stores.iter().max());
    last.map_or(String::new(), |id| program.graph.origin(*id).path.to_string())
}

/// A value by its op, type and place.
fn named(program: &Explanation, id: NodeId) -> String {
    let graph = &program.graph;
    let (op, ty, path) = (&graph.node(id).op, graph.ty(id), &graph.origin(id).path);
    match op {
        Op::State { path, .. } => format!("{ty} state `{path}`"),
        Op::Input { name, .. } => format!("{ty} input `{name}`"),
        op => format!("{ty} {} of `{path}`", op.name()),
    }
}
