//! `alip-run devices`.

use std::process::ExitCode;

use alip_runtime::device::{self, DeviceOptions};

use crate::Outcome;

/// Show the devices of this machine
#[derive(clap::Args)]
#[command(after_help = "Example:\n  alip-run devices\n  alip-run devices --json")]
pub(crate) struct Args {
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let options = DeviceOptions::default();
    let devices: Vec<(&str, Result<String, String>)> = device::names()
        .into_iter()
        .map(|name| {
            let opened = device::choose(name, &options);
            (name, opened.map(|choice| choice.device.description()).map_err(|error| error.to_string()))
        })
        .collect();
    let auto = device::choose("auto", &options);
    if args.json {
        let entry = |(name, found): &(&str, Result<String, String>)| {
            let (key, text) = match found {
                Ok(description) => ("description", description),
                Err(why) => ("unavailable", why),
            };
            (name.to_string(), serde_json::json!({ key: text }))
        };
        let mut object: serde_json::Map<_, _> = devices.iter().map(entry).collect();
        if let Ok(choice) = &auto {
            object.insert("auto".into(), choice.device.name().into());
        }
        say!("{}", serde_json::Value::Object(object));
        return Ok(ExitCode::SUCCESS);
    }
    for (name, found) in &devices {
        match found {
            Ok(description) => say!("{name:<10} {description}"),
            Err(why) => say!("{name:<10} {why}"),
        }
    }
    say!("{:<10} {}", "auto", auto?.reason);
    Ok(ExitCode::SUCCESS)
}
