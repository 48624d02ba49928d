//! Extraction against the best of all choices, on e-graphs small enough to try them all.
//!
//! An ILP would need a cost per term; here a term costs what it costs with those that read it, and an ILP solver is a
//! library of the system. So the optimum is found by enumeration: every candidate of every class that a choice reaches.

use alip_plan::{Rates, Target};

use super::extract::{Choice, Extraction};
use super::laws;
use super::rules;
use super::saturate::RuleIndex;

/// Choices after which an e-graph counts as too large to try them all.
const MOST_CHOICES: u32 = 20_000;

/// The least cost below all ways to complete a choice; `None` if there are too many.
fn least(extraction: &mut Extraction<'_>, choice: &mut Choice, open: &mut Vec<u32>, tried: &mut u32) -> Option<f64> {
    const UNDECIDED: u32 = u32::MAX;
    let Some(class) = open.pop() else {
        *tried += 1;
        if *tried > MOST_CHOICES {
            return None;
        }
        let complete: Choice = choice.iter().map(|at| if *at == UNDECIDED { 0 } else { *at }).collect();
        return Some(extraction.cost(&complete).map_or(f64::INFINITY, |cost| cost.seconds));
    };
    let mut best = f64::INFINITY;
    if choice[class as usize] != UNDECIDED {
        best = least(extraction, choice, open, tried)?;
    } else {
        for number in 0..extraction.classes[class as usize].candidates.len() {
            choice[class as usize] = number as u32;
            let depth = open.len();
            open.extend(extraction.children(class, number));
            let mut rest = open.clone();
            best = best.min(least(extraction, choice, &mut rest, tried)?);
            open.truncate(depth);
        }
        choice[class as usize] = UNDECIDED;
    }
    open.push(class);
    Some(best)
}

#[test]
fn extraction_finds_the_best_choice_of_small_regions() {
    let rules = rules::all();
    let enabled: Vec<usize> = (0..rules.len()).collect();
    let index = RuleIndex::new(&rules, &enabled);
    // A launch that costs little, so that what is computed matters on tensors as small as these.
    let target = Target { rates: Rates { launch: 1e-9, ..Target::cpu().rates }, ..Target::cpu() };
    let (mut compared, mut improved) = (0, 0);
    let mut failures = Vec::new();
    for rule in &rules {
        for seed in 0..6 {
            let Some(mut example) = laws::example_of(rule, seed) else { continue };
            let outputs = example.output_classes();
            let mut before = Extraction::new(&example.egraph, &outputs, &target);
            let only = vec![0; before.classes.len()];
            let Some(bound) = before.cost(&only) else { continue };
            index.saturate(&mut example.egraph);
            let mut extraction = Extraction::new(&example.egraph, &outputs, &target);
            (extraction.least_gain, extraction.more_launches) = (1e-9, true);
            let start = example.choice(&extraction);
            let found = extraction.cheaper(start, bound);
            let found = found.first().map_or(bound.seconds, |(_, cost)| cost.seconds);
            let mut open: Vec<u32> =
                outputs.iter().filter_map(|id| extraction.class_of(example.egraph.find(*id))).collect();
            let mut choice = vec![u32::MAX; extraction.classes.len()];
            let Some(best) = least(&mut extraction, &mut choice, &mut open, &mut 0) else { continue };
            compared += 1;
            improved += u32::from(best < bound.seconds * (1.0 - 1e-9));
            if found > best * (1.0 + 1e-9) {
                failures.push(format!(
                    "`{}` {seed}: {found:e}, the best is {best:e}, written {:e}",
                    rule.name, bound.seconds
                ));
            }
        }
    }
    println!("{compared} regions compared, {improved} of them better than written");
    assert!(compared > 150 && improved > 80, "{compared} regions compared, {improved} better than written");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
