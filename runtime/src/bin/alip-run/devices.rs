//! `alip-run devices`.

use std::process::ExitCode;

use alip_runtime::device::{self, DeviceOptions};

use crate::Outcome;

/// Show the devices of this machine, and the targets that `--target native` takes for them
#[derive(clap::Args)]
#[command(after_help = "Example:\n  alip-run devices\n  alip-run devices --json")]
pub(crate) struct Args {
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// Description and native target of a device, or why there is none.
type Found = Result<(String, String), String>;

pub(crate) fn run(args: &Args) -> Outcome {
    let options = DeviceOptions::default();
    let devices: Vec<(String, Found)> = device::names()
        .into_iter()
        .map(|name| {
            let opened = device::choose(&name, &options).map(|choice| choice.device);
            let facts = opened.map(|device| (device.description(), device.target().name));
            (name, facts.map_err(|error| error.to_string()))
        })
        .collect();
    let auto = device::choose("auto", &options);
    if args.json {
        let entry = |(name, found): &(String, Found)| {
            let facts = match found {
                Ok((description, target)) => serde_json::json!({ "description": description, "target": target }),
                Err(why) => serde_json::json!({ "unavailable": why }),
            };
            (name.clone(), facts)
        };
        let mut object: serde_json::Map<_, _> = devices.iter().map(entry).collect();
        if let Ok(choice) = &auto {
            object.insert("auto".into(), choice.name.clone().into());
        }
        say!("{}", serde_json::Value::Object(object));
        return Ok(ExitCode::SUCCESS);
    }
    for (name, found) in &devices {
        match found {
            Ok((description, target)) => say!("{name:<10} {description}\n{:<10} target {target}", ""),
            Err(why) => say!("{name:<10} {why}"),
        }
    }
    say!("{:<10} {}", "auto", auto?.reason);
    Ok(ExitCode::SUCCESS)
}
