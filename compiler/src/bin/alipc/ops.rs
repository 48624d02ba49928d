//! `alipc ops`.

use std::process::ExitCode;

use alip_compiler::diag::{SourceMap, did_you_mean};
use alip_compiler::ops::functions::functions;
use alip_compiler::resolve::{FORMS, INITIALISERS, stdlib};
use alip_compiler::spec::{ArgSpec, ModuleSpec, SOURCES};
use alip_plan::pipeline::SIGNATURES;

/// Show the functions, modules and data ops of the language
///
/// The text comes from their definitions, so it is complete. Names choose what is shown.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  alipc ops\n  alipc ops adamw rearrange")]
pub(crate) struct Args {
    /// Functions, modules, files of the standard library or data ops; all of them if none is given
    names: Vec<String>,
}

/// One entry of the documentation.
struct Entry {
    section: String,
    name: String,
    signature: String,
    lines: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut sources = SourceMap::new();
    let mut entries = language();
    match stdlib(&mut sources) {
        Ok(files) => {
            for (file, modules) in files {
                entries.extend(modules.iter().map(|spec| module(&file, spec)));
            }
        }
        Err(diagnostics) => {
            crate::report(&diagnostics, &sources);
            return ExitCode::FAILURE;
        }
    }
    entries.extend(data());
    let mut failed = false;
    for name in &args.names {
        if !entries.iter().any(|entry| entry.is(name)) {
            let near = did_you_mean(name, entries.iter().map(|entry| entry.name.as_str()));
            let help = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            eprintln!("error: nothing is named `{name}`{help}");
            failed = true;
        }
    }
    let (mut section, mut text) = ("", String::new());
    for entry in entries.iter().filter(|entry| args.names.is_empty() || args.names.iter().any(|name| entry.is(name))) {
        if section != entry.section {
            section = &entry.section;
            text += &format!("# {section}\n\n");
        }
        text += &format!("{}\n", entry.signature);
        entry.lines.iter().for_each(|line| text += &format!("    {line}\n"));
        text += "\n";
    }
    let printed = crate::print(&text);
    if failed { ExitCode::FAILURE } else { printed }
}

impl Entry {
    fn is(&self, name: &str) -> bool {
        self.name == name || self.section.ends_with(&format!("`{name}`"))
    }
}

fn language() -> Vec<Entry> {
    let entry = |section: &str, signature: &str, doc: &str| Entry {
        section: section.into(),
        name: signature.split('(').next().unwrap_or_default().into(),
        signature: signature.into(),
        lines: vec![doc.into()],
    };
    let function = functions().iter().map(|function| {
        let mut entry = entry("Functions", &function.signature(), function.doc);
        entry.lines.push(format!("e.g. {}", function.example));
        entry
    });
    let forms = FORMS.iter().map(|(form, doc)| entry("Forms", form, doc));
    function.chain(forms).chain(INITIALISERS.iter().map(|(init, doc)| entry("Initialisers", init, doc))).collect()
}

fn module(file: &str, spec: &ModuleSpec) -> Entry {
    let args: Vec<String> = spec
        .args
        .iter()
        .map(|(name, arg)| match arg {
            ArgSpec::Required(kind) => format!("{name}: {:?}", kind.node),
            ArgSpec::Default(value) => format!("{name}: {value}"),
        })
        .collect();
    let inputs: Vec<String> = spec.inputs.iter().map(|(name, input)| format!("{name} {}", input.shape)).collect();
    let outputs: Vec<&str> = spec.outputs.iter().map(|name| name.as_str()).collect();
    let mut lines: Vec<String> = spec.doc.iter().map(|doc| doc.node.clone()).collect();
    lines.push(format!("{} -> {}", inputs.join(", "), outputs.join(", ")));
    let kinds = [
        ("requires", spec.require.iter().map(ToString::to_string).collect()),
        ("parameters", spec.params.iter().map(|(name, param)| format!("{name} {}", param.shape)).collect()),
        ("state", spec.state.iter().map(|(name, state)| format!("{name} {}", state.shape)).collect::<Vec<_>>()),
    ];
    lines.extend(
        kinds
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| format!("{kind}: {}", names.join(", "))),
    );
    Entry {
        section: format!("Modules of `{file}`"),
        name: spec.name.text.clone(),
        signature: format!("{}({})", spec.name, args.join(", ")),
        lines,
    }
}

fn data() -> Vec<Entry> {
    let ops = SIGNATURES.iter().map(|op| {
        let args = op.args.iter().map(|(name, default)| match *default {
            "" => (*name).to_owned(),
            default => format!("{name}: {default}"),
        });
        let all: Vec<String> = op.inputs.iter().map(|input| (*input).to_owned()).chain(args).collect();
        Entry {
            section: "Ops of pipelines".into(),
            name: op.name.into(),
            signature: format!("{}({})", op.name, all.join(", ")),
            lines: std::iter::once(op.doc.to_owned())
                .chain(op.further.iter().map(|(name, what)| format!("then {name}: {what}")))
                .collect(),
        }
    });
    let sources = SOURCES.iter().map(|source| Entry {
        section: "Sources of pipelines".into(),
        name: source.name.into(),
        signature: source.name.into(),
        lines: std::iter::once(source.doc.to_owned())
            .chain(source.fields.iter().map(|field| {
                format!("{}{}: {}", field.name, if field.required { "" } else { " (optional)" }, field.doc)
            }))
            .collect(),
    });
    ops.chain(sources).collect()
}
