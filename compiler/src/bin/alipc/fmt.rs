//! `alipc fmt`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::spec::fmt::format;

/// Put spec files in house style
///
/// Comments are kept; formatting twice is formatting once. Names of changed files are printed. A folder stands for all
/// `.ron` files in it.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  alipc fmt graphs stdlib\n  alipc fmt --check graphs/alip_b32.ron")]
pub(crate) struct Args {
    /// Change nothing; exit with 1 if a file is not in house style
    #[arg(long)]
    check: bool,
    /// Spec files, or folders of them
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut failed = false;
    let mut names = String::new();
    for path in &args.files {
        let files = match spec_files(path) {
            Ok(files) => files,
            Err(error) => {
                eprintln!("error: cannot read `{}`: {error}", path.display());
                failed = true;
                continue;
            }
        };
        for file in files {
            let mut sources = SourceMap::new();
            match format_file(&mut sources, &file, args.check) {
                Ok(changed) => {
                    if changed {
                        names += &format!("{}\n", file.display());
                    }
                    failed |= changed && args.check;
                }
                Err(diagnostics) => {
                    crate::report(&diagnostics, &sources);
                    failed = true;
                }
            }
        }
    }
    let printed = crate::print(&names);
    if failed { ExitCode::FAILURE } else { printed }
}

/// The file itself, or all `.ron` files in a folder and below, sorted.
fn spec_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(spec_files(&entry.path())?);
        } else if entry.path().extension().is_some_and(|e| e == "ron") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Formats one file; says whether it was not in house style.
fn format_file(sources: &mut SourceMap, path: &Path, check: bool) -> Result<bool, Diagnostics> {
    let source = sources.add_path(path)?;
    let formatted = format(sources, source)?;
    let changed = formatted != sources.text(source);
    if changed && !check {
        crate::files::replace(path, formatted.as_bytes())?;
    }
    Ok(changed)
}
