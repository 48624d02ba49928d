//! Which devices there are, and which of them is meant.
//!
//! A device is named by its kind, and by an index where a machine can have several: `wgpu:1` is the second adapter in the order
//! of the drivers, `wgpu` the one that they hold for the fastest.

use super::{Device, DeviceError, DeviceOptions, cpu, reference};

/// What the devices of a kind compute with ([`Device::arithmetic`]), by index, or why there are none.
type List = fn() -> Result<Vec<String>, String>;

/// Opens the device of a kind with this index, or the best; the error says why not.
type Open = fn(Option<usize>, &DeviceOptions) -> Result<Box<dyn Device>, String>;

/// A kind of device this build knows.
struct Kind {
    name: &'static str,
    /// A kind of which every machine has exactly one has no indices.
    list: Option<List>,
    open: Open,
    /// `auto` asks the kinds in order and takes the first whose best device is fit for it; the string says why it is not.
    auto: fn(&dyn Device) -> Result<(), String>,
}

/// Known kinds, in the order `auto` prefers them.
fn registry() -> Vec<Kind> {
    vec![
        #[cfg(feature = "cuda")]
        Kind { name: "cuda", list: Some(super::cuda::list), open: super::cuda::open, auto: |_| Ok(()) },
        #[cfg(feature = "wgpu")]
        Kind { name: "wgpu", list: Some(super::wgpu::list), open: super::wgpu::open, auto: super::wgpu::fit_for_auto },
        Kind { name: "cpu", list: None, open: |_, options| cpu::open(options), auto: |_| Ok(()) },
        Kind {
            name: "reference",
            list: None,
            open: |_, _| Ok(Box::new(reference::Reference)),
            auto: |_| Err("it is for finding errors".into()),
        },
    ]
}

/// The kinds of devices of this build.
pub fn kinds() -> Vec<&'static str> {
    registry().iter().map(|kind| kind.name).collect()
}

/// Names of all devices of this machine, with their index where their kind has indices. A kind of which there is none stands
/// there without an index; [`choose`] says why.
pub fn names() -> Vec<String> {
    let of_kind = |kind: Kind| match kind.list.map(|list| list()) {
        Some(Ok(all)) if !all.is_empty() => (0..all.len()).map(|index| format!("{}:{index}", kind.name)).collect(),
        _ => vec![kind.name.to_string()],
    };
    registry().into_iter().flat_map(of_kind).collect()
}

/// A device and why it was taken.
pub struct Choice {
    /// The device.
    pub device: Box<dyn Device>,
    /// Its kind, with the index where that is what was asked for: `cpu`, `wgpu`, `wgpu:1`.
    pub name: String,
    /// One line for people: what was taken and what was passed over.
    pub reason: String,
}

impl Choice {
    fn new(name: &str, device: Box<dyn Device>) -> Choice {
        let reason = format!("{name}: {}", device.description());
        Choice { device, name: name.to_string(), reason }
    }
}

/// Opens the device called `name`: `wgpu:1`, or `wgpu` for the best of its kind; `auto` takes the first of the registry that
/// this machine has and that is fit for work (cuda, else a hardware wgpu adapter, else cpu).
///
/// # Errors
/// An unknown name, an index that no device has, or a kind that this machine has not.
pub fn choose(name: &str, options: &DeviceOptions) -> Result<Choice, DeviceError> {
    if name == "auto" {
        return auto(options);
    }
    let unavailable = |why: String| DeviceError::Unavailable { name: name.to_string(), why };
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index)),
        None => (name, None),
    };
    let kind = find(kind).map_err(unavailable)?;
    let index = index.map(|index| position(&kind, index)).transpose().map_err(unavailable)?;
    let device = (kind.open)(index, options).map_err(unavailable)?;
    Ok(Choice::new(name, device))
}

/// Opens the device of a kind that computes with `arithmetic`, as one did before; the best of the kind where there is none.
///
/// # Errors
/// As [`choose`].
pub fn choose_like(kind: &str, arithmetic: &str, options: &DeviceOptions) -> Result<Choice, DeviceError> {
    let list = find(kind).ok().and_then(|kind| kind.list);
    let index = list.and_then(|list| list().ok()?.iter().position(|found| found == arithmetic));
    match index {
        Some(index) => choose(&format!("{kind}:{index}"), options),
        None => choose(kind, options),
    }
}

fn auto(options: &DeviceOptions) -> Result<Choice, DeviceError> {
    let mut passed_over = String::new();
    for kind in registry() {
        let opened = (kind.open)(None, options);
        match opened.and_then(|device| (kind.auto)(device.as_ref()).map(|()| device)) {
            Ok(device) => {
                let mut choice = Choice::new(kind.name, device);
                choice.reason += &passed_over;
                return Ok(choice);
            }
            Err(why) => passed_over += &format!("; not {}: {why}", kind.name),
        }
    }
    Err(DeviceError::Unavailable { name: "auto".into(), why: passed_over.trim_start_matches("; ").into() })
}

fn find(name: &str) -> Result<Kind, String> {
    registry().into_iter().find(|kind| kind.name == name).ok_or_else(|| {
        let hint = match name {
            "cuda" | "wgpu" => format!(" (built without the feature `{name}`)"),
            _ => String::new(),
        };
        format!("this build has {}, and auto{hint}", kinds().join(", "))
    })
}

/// The index that stands behind the name of a kind.
fn position(kind: &Kind, index: &str) -> Result<usize, String> {
    let name = kind.name;
    let Some(list) = kind.list else { return Err(format!("there is one {name} only; call it `{name}`")) };
    let all = list()?;
    // As it is written and no other way, since runs and messages repeat the name.
    (0..all.len()).find(|known| known.to_string() == index).ok_or_else(|| {
        let there: Vec<String> =
            all.iter().enumerate().map(|(index, found)| format!("{name}:{index} ({found})")).collect();
        format!("there is {}", there.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(name: &str, message: &str) {
        let Err(error) = choose(name, &DeviceOptions::default()) else { panic!("there is no `{name}`") };
        let error = error.to_string();
        assert!(error.starts_with(&format!("device `{name}` cannot be used: {message}")), "{error}");
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        check_refused("cuba", "this build has ");
        check_refused("cuba:1", "this build has ");
        check_refused("cpu:1", "there is one cpu only; call it `cpu`");
        check_refused("cpu:", "there is one cpu only; call it `cpu`");
    }

    #[test]
    #[cfg(feature = "wgpu")]
    fn adapters_are_numbered() {
        let Ok(all) = crate::device::wgpu::list() else {
            return check_refused("wgpu:0", "no Vulkan, Metal or DX12 adapter");
        };
        let last = all.len() - 1;
        check_refused("wgpu:one", &format!("there is wgpu:0 ({})", all[0]));
        check_refused("wgpu:00", &format!("there is wgpu:0 ({})", all[0]));
        check_refused(&format!("wgpu:{}", last + 1), &format!("there is wgpu:0 ({})", all[0]));
        let options = DeviceOptions::default();
        let by_index = choose(&format!("wgpu:{last}"), &options).unwrap();
        assert_eq!((by_index.name, by_index.device.arithmetic()), (format!("wgpu:{last}"), all[last].clone()));
        // Two of the same make are one as far as results go.
        assert_eq!(choose_like("wgpu", &all[last], &options).unwrap().device.arithmetic(), all[last]);
        assert_eq!(choose_like("wgpu", "an adapter of another machine", &options).unwrap().name, "wgpu");
    }

    #[test]
    fn auto_says_what_it_took() {
        let choice = choose("auto", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
        assert_eq!(choice.name, choice.device.name());
        assert!(choice.reason.starts_with(choice.device.name()), "{}", choice.reason);
    }
}
