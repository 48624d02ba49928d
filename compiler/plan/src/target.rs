//! Names of targets: those that ship with alip, and those with the limits of one machine.
//!
//! A name says everything, so that a plan for a machine can be compiled, byte for byte, on another one: `wgpu`, or
//! `wgpu:segment=4294967040,binding=2147483392,operands=32,workgroups=65535`, as `alip-run devices` prints it.

use crate::{Target, TargetKind};

impl Target {
    /// The named descriptions that ship with alip.
    pub fn all() -> Vec<Target> {
        vec![Target::cpu(), Target::cpu_mixed(), Target::wgpu()]
    }

    /// The one with this name, perhaps with other limits.
    pub fn named(name: &str) -> Option<Target> {
        let known = |name: &str| Target::all().into_iter().find(|target| target.name == name);
        let Some((base, limits)) = name.split_once(':') else { return known(name) };
        let base = known(base).filter(|base| base.kind != TargetKind::Cpu)?;
        let [segment, binding, operands, workgroups] = LIMITS
            .map(|limit| limits.split(',').find_map(|part| part.strip_prefix(limit)?.strip_prefix('=')?.parse().ok()));
        let narrow = |limit: Option<u64>| u32::try_from(limit?).ok();
        let target = base.with_limits(segment?, binding?, narrow(operands)?, narrow(workgroups)?);
        // Also refuses what is written another way, or less than every adapter has.
        (target.name == name && target.holds(&base)).then_some(target)
    }

    /// The description that ships with alip and that this one is, but for its limits: for any machine of the kind.
    pub fn portable(&self) -> Target {
        let base = self.name.split(':').next().unwrap_or_default();
        Target::named(base).unwrap_or_else(|| self.clone())
    }

    /// This target with other limits, which its name then states.
    pub fn with_limits(&self, segment: u64, binding: u64, operands: u32, workgroups: u32) -> Target {
        let limits = [segment, binding, operands.into(), workgroups.into()];
        let parts: Vec<String> = LIMITS.iter().zip(limits).map(|(limit, value)| format!("{limit}={value}")).collect();
        Target {
            name: format!("{}:{}", self.portable().name, parts.join(",")),
            max_segment_bytes: segment,
            max_binding_bytes: binding,
            max_operands: operands,
            max_workgroups: workgroups,
            ..self.clone()
        }
    }

    /// Whether every plan for the other target keeps to the limits of this one.
    fn holds(&self, other: &Target) -> bool {
        self.max_segment_bytes >= other.max_segment_bytes
            && self.max_binding_bytes >= other.max_binding_bytes
            && self.max_operands >= other.max_operands
            && self.max_workgroups >= other.max_workgroups
    }
}

/// How a name calls its limits: bytes of a segment, bytes of an operand, operands of a kernel, workgroups of a dimension.
const LIMITS: [&str; 4] = ["segment", "binding", "operands", "workgroups"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_everything() {
        for target in Target::all() {
            assert_eq!(Target::named(&target.name), Some(target));
        }
        let native = Target::wgpu().with_limits(1 << 32, 1 << 31, 16, 65_535);
        assert_eq!(native.name, "wgpu:segment=4294967296,binding=2147483648,operands=16,workgroups=65535");
        assert_eq!(native.portable(), Target::wgpu());
        assert_eq!(Target::named(&native.name), Some(native));
    }

    #[test]
    fn other_names_are_none() {
        for name in [
            "",
            "gpu",
            "wgpu:",
            "wgpu:segment=4294967296",
            "cpu:segment=4294967296,binding=2147483648,operands=16,workgroups=65535",
            "wgpu:segment=4294967296,binding=2147483648,operands=16,workgroups=0",
            "wgpu:segment=4294967296,binding=1,operands=16,workgroups=65535",
            "wgpu:binding=2147483648,segment=4294967296,operands=16,workgroups=65535",
            "wgpu:segment=4294967296,binding=2147483648,operands=16,workgroups=65535,",
            "wgpu:segment=x,binding=2147483648,operands=16,workgroups=65535",
        ] {
            assert_eq!(Target::named(name), None, "{name}");
        }
    }
}
