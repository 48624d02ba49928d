//! `alip-run bisect`.

mod build;

use std::path::PathBuf;
use std::process::ExitCode;

use alip_compiler::diag::did_you_mean;
use alip_compiler::optimize::rule_names;
use alip_compiler::{CompileOptions, SWITCHES, Switch, transform};

use self::build::{Build, Given, Stage};
use crate::model::{DeviceArgs, say_native, target};
use crate::{Failure, Outcome};

/// Find the first value of a training step that leaves its bound, and what is responsible
///
/// Compiles the graph twice, as it is and with something turned off, and takes one step with each. The step as lifting, whole-
/// graph rewrites and packing leave it is held against the one written, both in f64, by all that has a name in both: outputs,
/// named values, gradients, new states. Then the graph that is scheduled is held against it, and every kernel against the
/// interpreter, on what it really read, within bounds on rounding that are derived for it. What is wrong is tried again with
/// passes, rewrites and rules turned off one at a time. Batch and state are random unless files give them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  alip-run bisect alip_tiny --against no-fuse
  alip-run bisect alip_tiny --against no-rule packing
  alip-run bisect alip_tiny --weights weights.safetensors --batches inputs.safetensors --device wgpu
  alip-run bisect small.ron --device reference --target wgpu")]
pub(crate) struct Args {
    /// Name or path of a graph spec
    spec: String,
    /// The rewrite, rule or theme of rules that `--against no-rule` turns off
    rule: Option<String>,
    /// What to turn off for the comparison: no-lift, no-rewrites, no-egraph, no-recompute, no-fuse, no-library, or no-rule with a
    /// name
    #[arg(long, value_name = "NO-NAME", default_value = "no-fuse")]
    against: String,
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Initial weights, as for `replay`
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Batches as for `replay`, of which the first is taken
    #[arg(long)]
    batches: Option<PathBuf>,
    /// What to compile for, as for `replay`: `--device reference` runs what the kernels of any target describe, so that it
    /// acquits a wrong shader
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let against = Suspect::against(args)?;
    let device = args.device.open()?;
    say_native(args.target.as_deref(), &*device);
    let target = target(args.target.as_deref(), &*device)?;
    drop(device);
    let whole = Build::new(args, &target, &|_| {})?;
    let less = Build::new(args, &target, &|options| against.turn_off(options))?;
    let data = Given::new(args, &whole)?;
    say!("{}: {}, with {} {}", args.spec, whole.kernels(&data)?, against.name, less.kernels(&data)?);

    let Some(found) = whole.first_wrong(args, &data)? else {
        if let Some(what) = data.nonfinite() {
            return Err(Failure::message(what));
        }
        say!("every result is within its bound, and every kernel on its own");
        return match less.first_wrong(args, &data)? {
            Some(wrong) => Err(Failure::message(format!("with {}, however:\n{}", against.name, wrong.text))),
            None => Ok(ExitCode::SUCCESS),
        };
    };
    say!("{}", found.text);
    let mut guilty = Vec::new();
    for suspect in suspects(&whole).into_iter().filter(|suspect| found.stage >= suspect.first) {
        let build = Build::new(args, &target, &|options| suspect.turn_off(options))?;
        if !build.is_wrong_at(found.stage, args, &data)? {
            guilty.push(suspect);
        }
    }
    let rules: Vec<&Suspect> = guilty.iter().filter(|suspect| suspect.is_rule()).collect();
    let mut alone = Vec::new();
    for rule in rules.iter().filter(|_| rules.len() > 1) {
        let build = Build::new(args, &target, &|options| rule.leave_alone(options))?;
        if build.is_wrong_at(found.stage, args, &data)? {
            alone.push(*rule);
        }
    }
    say!("responsible: {}", verdict(&guilty, &alone, found.stage));
    Ok(ExitCode::FAILURE)
}

/// What is responsible, given what makes a step right when it is turned off, in the order of the passes, and which of the
/// rules among these make it wrong with no other rule beside them.
fn verdict(guilty: &[Suspect], alone: &[&Suspect], stage: Stage) -> String {
    let names = |list: &[&Suspect]| list.iter().map(|suspect| suspect.name.as_str()).collect::<Vec<_>>().join(", ");
    let rules: Vec<&Suspect> = guilty.iter().filter(|suspect| suspect.is_rule()).collect();
    let guilty: Vec<&Suspect> = guilty.iter().collect();
    // What one rule makes may be chosen only for what another one makes of it.
    match alone {
        [] if rules.len() > 1 => {
            return format!("what {} turn off together; everything is right without any of them", names(&rules));
        }
        [rule] => {
            let others: Vec<&Suspect> = rules.into_iter().filter(|other| other.name != rule.name).collect();
            let (rule, others) = (&rule.name, names(&others));
            return format!(
                "what {rule} turns off; it is wrong with no other rule beside it (and right with {others})"
            );
        }
        [_, ..] => return format!("what {} turn off; each is wrong with no other rule beside it", names(alone)),
        [] => {}
    }
    // What a later pass does wrong does not happen either when an earlier one leaves it nothing to do.
    match guilty.split_last() {
        None => format!("the {} itself; nothing that can be turned off makes it right", stage.name()),
        Some((last, [])) => format!("what {} turns off; everything is right without it", last.name),
        Some((last, before)) => {
            format!("what {} turns off; everything is right without it (and with {})", last.name, names(before))
        }
    }
}

/// Something that can be turned off.
struct Suspect {
    /// As an option: `no-rule packing`.
    name: String,
    what: What,
    /// The first stage that it can make wrong.
    first: Stage,
}

enum What {
    Switch(&'static Switch),
    Rule(String),
}

impl Suspect {
    fn switch(switch: &'static Switch) -> Suspect {
        let first = match switch.name {
            "no-lift" | "no-rewrites" => Stage::Forward,
            _ => Stage::Graph,
        };
        Suspect { name: switch.name.into(), what: What::Switch(switch), first }
    }

    fn rule(name: &str) -> Suspect {
        let first = if is_rewrite(name) { Stage::Forward } else { Stage::Graph };
        Suspect { name: format!("no-rule {name}"), what: What::Rule(name.into()), first }
    }

    /// Whether it is a rule of the e-graph.
    fn is_rule(&self) -> bool {
        matches!(&self.what, What::Rule(name) if !is_rewrite(name))
    }

    /// What `--against` names.
    fn against(args: &Args) -> Outcome<Suspect> {
        let (name, rule) = (args.against.as_str(), args.rule.as_deref());
        let switch = SWITCHES.iter().find(|switch| switch.name == name);
        match (name, switch, rule) {
            ("no-rule", _, Some(rule)) => {
                let rules = rule_names().into_iter().flat_map(|(theme, name)| [theme, name]);
                let names: Vec<&str> = transform::names().chain(rules).collect();
                if names.contains(&rule) {
                    return Ok(Suspect::rule(rule));
                }
                let near = did_you_mean(rule, names.iter().copied());
                let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                Err(Failure::message(format!("there is no rewrite, rule or theme of rules `{rule}`{near}")))
            }
            ("no-rule", _, None) => {
                let names = transform::names().collect::<Vec<_>>().join(", ");
                Err(Failure::message(format!("--against no-rule: name a rule, a theme of rules, or one of {names}")))
            }
            (_, Some(_), Some(rule)) => {
                Err(Failure::message(format!("`{rule}`: a name is for `--against no-rule {rule}` only")))
            }
            (_, Some(switch), None) => Ok(Suspect::switch(switch)),
            (_, None, _) => {
                let names = SWITCHES.iter().map(|switch| switch.name).collect::<Vec<_>>().join(", ");
                Err(Failure::message(format!("--against {name}: there is {names}, no-rule NAME")))
            }
        }
    }

    /// Turns off all rules but this one.
    fn leave_alone(&self, options: &mut CompileOptions) {
        let others = rule_names().into_iter().map(|(_, name)| name.to_string());
        options.optimize.without.extend(others.filter(|name| !matches!(&self.what, What::Rule(own) if own == name)));
    }

    fn turn_off(&self, options: &mut CompileOptions) {
        match &self.what {
            What::Switch(switch) => (switch.off)(options),
            What::Rule(name) if is_rewrite(name) => drop(options.transform.disabled.0.insert(name.clone())),
            What::Rule(name) => drop(options.optimize.without.insert(name.clone())),
        }
    }
}

fn is_rewrite(name: &str) -> bool {
    transform::names().any(|rewrite| rewrite == name)
}

/// All that can be turned off, in the order of the passes, the whole before its parts; of the rules those that were used.
fn suspects(build: &Build) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    for switch in SWITCHES {
        suspects.push(Suspect::switch(switch));
        match switch.name {
            "no-rewrites" => suspects.extend(transform::names().map(Suspect::rule)),
            "no-egraph" => suspects.extend(build.rules.iter().map(|rule| Suspect::rule(rule))),
            _ => {}
        }
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guilty: &[&str], alone: &[&str], said: &str) {
        let suspect = |name: &&str| match SWITCHES.iter().find(|switch| switch.name == *name) {
            Some(switch) => Suspect::switch(switch),
            None => Suspect::rule(name),
        };
        let guilty: Vec<Suspect> = guilty.iter().map(suspect).collect();
        let alone: Vec<Suspect> = alone.iter().map(suspect).collect();
        assert_eq!(verdict(&guilty, &alone.iter().collect::<Vec<_>>(), Stage::Graph), said);
    }

    #[test]
    fn one_set_is_named() {
        check(&[], &[], "the rewriting of the graph itself; nothing that can be turned off makes it right");
        let right = "everything is right without it";
        check(&["no-fuse"], &[], &format!("what no-fuse turns off; {right}"));
        let both = format!("what no-rule sub-self turns off; {right} (and with no-egraph)");
        check(&["no-egraph", "sub-self"], &[], &both);
        let rules = ["no-egraph", "sub-self", "neg-neg"];
        let one = "what no-rule neg-neg turns off; it is wrong with no other rule beside it (and right with no-rule sub-self)";
        check(&rules, &["neg-neg"], one);
        let together =
            "what no-rule sub-self, no-rule neg-neg turn off together; everything is right without any of them";
        check(&rules, &[], together);
    }
}
