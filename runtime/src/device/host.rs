//! Segments in host memory, for the devices that compute there.

use std::ops::Range;

use alip_plan::Plan;

use super::{DeviceError, Download, Slice};

/// Alignment of segments in bytes: a cache line, so that a vector never straddles two.
const ALIGNMENT: usize = 64;

/// The segments of a plan.
pub(super) struct HostMemory {
    segments: Vec<Segment>,
}

struct Segment {
    /// Owns the memory; untouched pages stay with the operating system.
    _memory: Vec<u8>,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the pointer is into memory that the segment owns; who may touch it when is the business of the device, which
// hands out access by `&mut`.
unsafe impl Send for Segment {}
// SAFETY: as above; shared access happens only inside a step, where validated views keep threads apart.
unsafe impl Sync for Segment {}

impl HostMemory {
    /// Allocates the plan's segments, zeroed.
    pub(super) fn new(plan: &Plan, device: &str) -> Result<HostMemory, DeviceError> {
        let allocate = |bytes: u64| {
            let refused = || DeviceError::OutOfMemory { device: device.to_string(), bytes, free: None };
            let size = usize::try_from(bytes).ok().and_then(|size| size.checked_add(ALIGNMENT)).ok_or_else(refused)?;
            // `vec![0; n]` maps zero pages lazily but aborts when there is no room; ask first.
            Vec::<u8>::new().try_reserve_exact(size).map_err(|_| refused())?;
            let mut memory = vec![0u8; size];
            let base = memory.as_mut_ptr();
            // SAFETY: `align_offset` to 64 is less than the 64 bytes allocated beyond `bytes`.
            let base = unsafe { base.add(base.align_offset(ALIGNMENT)) };
            Ok(Segment { _memory: memory, base, bytes: size - ALIGNMENT })
        };
        let needed = plan.segments.iter().map(|segment| segment.bytes).fold(0, u64::saturating_add);
        if let Some(there) = memory_of_machine().filter(|there| needed > *there) {
            return Err(DeviceError::TooLarge { needed, there });
        }
        let segments = plan.segments.iter().map(|segment| allocate(segment.bytes)).collect::<Result<_, _>>()?;
        Ok(HostMemory { segments })
    }

    /// First byte of a segment.
    pub(super) fn base(&self, segment: u32) -> *mut u8 {
        self.segments.get(segment as usize).map_or(std::ptr::null_mut(), |segment| segment.base)
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes as u64).sum()
    }

    pub(super) fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.len() as u64 != slice.bytes {
            return Err(DeviceError::Misuse(format!("{} bytes given for a slice of {}", bytes.len(), slice.bytes)));
        }
        let at = self.locate(slice)?;
        // SAFETY: `locate` checked the range, and `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(at, bytes.len()) }.copy_from_slice(bytes);
        Ok(())
    }

    pub(super) fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.bytes as usize).sum());
        for slice in slices {
            let at = self.locate(*slice)?;
            // SAFETY: as in `write`.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(at, slice.bytes as usize) });
        }
        Ok(Box::new(Ready(bytes)))
    }

    fn locate(&self, slice: Slice) -> Result<*mut u8, DeviceError> {
        let inside =
            |segment: &&Segment| slice.offset.checked_add(slice.bytes).is_some_and(|end| end <= segment.bytes as u64);
        match self.segments.get(slice.segment as usize).filter(inside) {
            // SAFETY: the offset is inside the segment.
            Some(segment) => Ok(unsafe { segment.base.add(slice.offset as usize) }),
            None => Err(DeviceError::Misuse(format!("{slice:?} is outside the plan's memory"))),
        }
    }
}

/// Bytes that this machine, or the container on it, has; none where it does not say. What is promised beyond it is found missing
/// when it is touched, and then the process is killed without a word.
fn memory_of_machine() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        let kib: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()?;
        Some(kib * 1024)
    });
    let allowed = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
    total.into_iter().chain(allowed).min()
}

/// A download that needs no waiting.
struct Ready(Vec<u8>);

impl Download for Ready {
    fn poll(&mut self) -> bool {
        true
    }
    fn wait(self: Box<Self>) -> Result<Vec<u8>, DeviceError> {
        Ok(self.0)
    }
}

/// Checks a request to run steps against the plan.
pub(super) fn check_steps<'a>(
    plan: &'a Plan,
    program: &str,
    steps: &Range<usize>,
) -> Result<&'a alip_plan::Program, DeviceError> {
    let Some(found) = plan.programs.get(program) else {
        let names: Vec<&str> = plan.programs.keys().map(String::as_str).collect();
        return Err(DeviceError::Misuse(format!("the plan has no program `{program}`; it has {}", names.join(", "))));
    };
    if steps.start > steps.end || steps.end > found.steps.len() {
        return Err(DeviceError::Misuse(format!("`{program}` has {} steps, not {steps:?}", found.steps.len())));
    }
    Ok(found)
}
