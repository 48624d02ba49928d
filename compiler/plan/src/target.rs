//! Targets: what a plan is compiled for, as data.
//!
//! Everything that a machine decides is a field here with its reason: limits, types, rates, and the sizes from which on
//! something is worth doing. A new card is a new description, not a new branch in a pass. What bounds the work of the compiler
//! itself (searches, comparisons) stands where it searches.
//!
//! A name says everything, so that a plan for a machine can be compiled, byte for byte, on another one: `wgpu`, or
//! `wgpu:segment=4294967040,binding=2147483392,operands=32,workgroups=65535`, as `alip-run devices` prints it.

use serde::{Deserialize, Serialize};

use crate::DType;

/// What kind of device a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetKind {
    /// The embedded default: register code over tiles, products from a library.
    Cpu,
    /// WGSL through wgpu.
    Wgpu,
    /// CUDA C through NVRTC.
    Cuda,
}

/// A named description of a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// `cpu`, `wgpu`, or the name that `native` printed.
    pub name: String,
    /// Which kernels the plan holds.
    pub kind: TargetKind,
    /// Largest segment in bytes.
    pub max_segment_bytes: u64,
    /// Largest slice of a segment that one kernel operand may cover, in bytes.
    pub max_binding_bytes: u64,
    /// Most operands of one kernel.
    pub max_operands: u32,
    /// Alignment of a buffer's offset in its segment, in bytes.
    pub alignment: u64,
    /// Most workgroups per dispatch dimension (GPU targets).
    pub max_workgroups: u32,
    /// Threads in a workgroup of pointwise and reduction kernels (GPU targets).
    pub workgroup_size: u32,
    /// Types of 16 bits in which `precision` may ask for products and activations to be; f32 takes the place of others. What a
    /// spec itself casts is rounded on every target, if need be in f32.
    pub storage: Vec<DType>,
    /// Whether values of 16 bits take 16 bits of memory; if not, they lie in f32, rounded.
    pub narrow_memory: bool,
    /// Types of queries, keys and values for which attention is a kernel; for others it is computed by primitives.
    pub attention: Vec<DType>,
    /// How fast it is taken to be.
    pub rates: Rates,
    /// What is worth one kernel, and what is worth storing.
    pub fusion: Fusion,
    /// How generated kernels share out their work; none where the device brings the loops along.
    pub tiles: Option<Tiles>,
    /// Whether products are calls of a library where it has what follows them; none where kernels compute all of them.
    pub library: Option<Library>,
    /// Numbers of rows that packed programs are compiled for.
    pub packing: Packing,
}

/// The model of a machine by which launches are weighed against each other. These are figures of a typical machine of its
/// kind, not of the one at hand, so that the same target gives the same plan everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Seconds per kernel that are not spent in it.
    pub launch: f64,
    /// What a launch more counts as when a whole program is weighed, in launches: what it costs beside its own time (a wait, a
    /// barrier, a place in a queue) the model knows least.
    pub dear_launch: f64,
    /// Bytes per second between kernels and memory.
    pub bandwidth: f64,
    /// Floating point operations per second in products.
    pub products: f64,
    /// The same in convolutions.
    pub convolutions: f64,
    /// Scalar operations per second at points and in reductions.
    pub points: f64,
    /// Scalar operations that a transcendental function counts as.
    pub transcendental: u32,
    /// Scalar operations that a division or a root counts as.
    pub division: u32,
    /// Whether a kernel computes while it moves memory, so that the longer of both counts.
    pub overlaps: bool,
    /// How much slower products of f32 are than `products`.
    pub wide_products: f64,
    /// Where products are computed in tiles by many units at a time: the last round takes as long as a full one.
    pub waves: Option<Waves>,
}

/// How a card shares out products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waves {
    /// Rows and columns of a tile.
    pub tile: u64,
    /// Tiles at a time: units of the card.
    pub at_once: u64,
    /// Terms of the parts that a long sum is cut into: so many pay for writing a tile and reading it again.
    pub fewest_terms: u64,
    /// Most such parts, which are all in memory.
    pub most_parts: u64,
}

impl Waves {
    /// Tiles of generated products, on so many units.
    fn of(at_once: u64) -> Waves {
        Waves { tile: 128, at_once, fewest_terms: 512, most_parts: 32 }
    }
}

/// When nodes become one kernel, are computed again, or are cut into several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fusion {
    /// Most nodes of a kernel: keeps it small enough for registers and compilers.
    pub most_members: u32,
    /// Most reductions that follow one another in a kernel: every stage walks the row again and computes again what it needs.
    pub most_stages: u32,
    /// A pointwise kernel becomes a reduction only if its rows have at most so many elements: fewer and longer ones would leave
    /// threads without work.
    pub longest_row: u64,
    /// A value with fewer elements than its reader has points, by this factor, is stored rather than computed at every point.
    pub repeated: u64,
    /// Most scalar operations of an expression that is computed again rather than stored.
    pub most_operations: u32,
    /// A value this many times smaller than the one made from it costs nothing to read again.
    pub much_smaller: u64,
    /// Reductions to fewer results than this are split, so that more than a few threads have work.
    pub few_results: u64,
    /// Elements of the pieces that long reductions are cut into, roughly: large against the cost of a launch, small against a
    /// cache and the number of threads.
    pub piece: u64,
    /// Fewest equal terms of a sum that are joined into one kernel: below, a launch more or less weighs nothing.
    pub fewest_terms: u32,
    /// Most bytes of values that are joined into one: large against the cost of a launch, small against the memory that waits
    /// for the last part, and within what the target binds.
    pub chunk_bytes: u64,
}

/// Sizes of generated kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// Rows and columns of the part of a product that a workgroup computes: a multiple of four, as every thread has 4 x 4.
    pub product: u64,
    /// Terms of its sums that lie in workgroup memory at a time.
    pub depth: u64,
    /// Threads of a workgroup of attention, and rows of the other side that it takes at a time: a power of two.
    pub attention: u64,
    /// The gradient of a convolution's weight that sums more products than this is shared by a workgroup.
    pub long_sum: u64,
    /// Threads of such a workgroup: a power of two.
    pub sum_threads: u64,
    /// Elements of a table row that one thread of a scatter owns, in registers.
    pub scatter_chunk: u64,
    /// Rows shorter than this are reduced by one thread each: a workgroup would mostly wait.
    pub short_row: u64,
    /// Neighbouring rows that a workgroup reduces where they lie side by side in memory: as many as threads that run in step.
    pub kept_rows: u64,
    /// Memory that the threads of a workgroup share, in bytes.
    pub workgroup_bytes: u64,
}

/// A library of products: cuBLASLt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Memory that a product may use beside its operands, one after the other: long sums are split there.
    pub workspace_bytes: u64,
}

/// Numbers of rows that packed programs are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packing {
    /// Of a training step.
    pub trained: Spacing,
    /// Of a program that is not trained.
    pub untrained: Spacing,
}

/// How close the numbers of rows are that a packed program is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spacing {
    /// Numbers per doubling: from an eighth of all rows, from a quarter, and from a half. Each divides twelve.
    pub per_doubling: [u32; 3],
    /// They are multiples of this: products are computed in tiles of at least so many rows.
    pub multiple: u64,
    /// Fewer rows between two of them are not worth a program.
    pub least_step: u64,
}

impl Target {
    /// The embedded cpu target.
    pub fn cpu() -> Target {
        Target {
            name: "cpu".into(),
            kind: TargetKind::Cpu,
            max_segment_bytes: u64::MAX,
            max_binding_bytes: u64::MAX,
            max_operands: 64,
            alignment: 64, // a cache line
            max_workgroups: u32::MAX,
            workgroup_size: 1,
            // Its vectors are of f32 and its products are a library's: 16 bits would be widened first, which takes longer.
            storage: Vec::new(),
            narrow_memory: true,
            attention: vec![DType::F32, DType::Bf16, DType::F16],
            // Two cores with AVX2, as `docs/performance.md` measures them: products at 80 GFLOP/s a core, a tenth less in
            // convolutions for gathering columns; main memory at what two cores draw from it; vectors of eight at about
            // a nanosecond; a launch wakes the threads. Transcendental functions are polynomials in vectors.
            rates: Rates {
                launch: 5e-6,
                dear_launch: 20.0,
                bandwidth: 16e9,
                products: 160e9,
                convolutions: 145e9,
                points: 12e9,
                transcendental: 4,
                division: 3,
                overlaps: false,
                wide_products: 1.0,
                waves: None,
            },
            fusion: Fusion {
                most_members: 192,
                most_stages: 4,
                // 32 KiB, a first-level cache.
                longest_row: 8192,
                repeated: 2,
                most_operations: 24,
                much_smaller: 8,
                few_results: 32,
                piece: 4096,
                fewest_terms: 4,
                // Half of what a GPU binds by default.
                chunk_bytes: 64 << 20,
            },
            tiles: None,
            library: None, // that of the cpu device is part of it
            packing: Packing {
                trained: Spacing { per_doubling: [6, 6, 4], multiple: 16, least_step: 32 },
                untrained: Spacing { per_doubling: [3, 3, 3], multiple: 16, least_step: 32 },
            },
        }
    }

    /// The cpu target with storage of 16 bits: half the memory for activations, slower steps.
    pub fn cpu_mixed() -> Target {
        Target { name: "cpu_mixed".into(), storage: vec![DType::Bf16, DType::F16], ..Target::cpu() }
    }

    /// A wgpu adapter with the default limits of the WebGPU specification: what every adapter has.
    pub fn wgpu() -> Target {
        let cpu = Target::cpu();
        Target {
            name: "wgpu".into(),
            kind: TargetKind::Wgpu,
            max_segment_bytes: 256 << 20,
            max_binding_bytes: 128 << 20,
            max_operands: 8,
            alignment: 256,
            max_workgroups: 65_535,
            workgroup_size: 256,
            storage: Vec::new(), // WGSL has no bf16, and f16 as an extension only
            narrow_memory: false,
            attention: vec![DType::F32],
            // An integrated adapter: the memory of the host, generated products at a fraction of the peak, and a dispatch
            // with its barrier.
            rates: Rates {
                launch: 10e-6,
                bandwidth: 40e9,
                products: 500e9,
                convolutions: 250e9,
                points: 200e9,
                ..cpu.rates
            },
            tiles: Some(Tiles {
                // 64 x 64 results by 16 x 16 threads, 16 terms at a time: half of the workgroup memory.
                product: 64,
                depth: 16,
                // Texts of 77 rows, and images of 50, are one or two tiles.
                attention: 64,
                long_sum: 4096,
                sum_threads: 64,
                scatter_chunk: 32,
                short_row: 32,
                kept_rows: 32,
                workgroup_bytes: 16_384,
            }),
            ..cpu
        }
    }

    /// An NVIDIA card of compute capability 8.0 and up, described as an A100.
    pub fn sm_80() -> Target {
        let wgpu = Target::wgpu();
        Target {
            name: "sm_80".into(),
            kind: TargetKind::Cuda,
            max_segment_bytes: u64::MAX,
            // Elements of an operand are numbered with 32 bits.
            max_binding_bytes: 1 << 32,
            max_operands: 64,
            max_workgroups: i32::MAX as u32, // the first dimension of a grid
            storage: vec![DType::Bf16, DType::F16],
            narrow_memory: true,
            attention: vec![DType::F32, DType::Bf16, DType::F16],
            // Of the published figures, what kernels reach: 70 % of the rate of 16-bit products and 80 % of the memory's. A launch
            // within a captured graph.
            rates: Rates {
                launch: 2e-6,
                bandwidth: 0.8 * 1.94e12,
                products: 0.7 * 312e12,
                convolutions: 0.5 * 312e12,
                points: 9.7e12,
                overlaps: true,
                // Tensor cores in 16 bits against ordinary ones, which compute 19.5 TFLOP/s in f32.
                wide_products: 16.0,
                waves: Some(Waves::of(108)),
                ..wgpu.rates
            },
            fusion: Fusion { few_results: 256, ..wgpu.fusion },
            tiles: wgpu.tiles.map(|tiles| Tiles { kept_rows: 32, workgroup_bytes: 48 << 10, ..tiles }),
            library: Some(Library { workspace_bytes: 4 << 20 }), // as NVIDIA recommends
            ..wgpu
        }
    }

    /// An H100 or H200; rates as they were measured on an H200: 790 TFLOP/s in bf16, 4.3 TB/s in copies.
    pub fn sm_90a() -> Target {
        let base = Target::sm_80();
        let rates = Rates {
            bandwidth: 0.8 * 4.3e12,
            products: 0.7 * 790e12,
            convolutions: 0.5 * 790e12,
            points: 33e12,
            wide_products: 12.0, // 67 TFLOP/s in f32
            waves: Some(Waves::of(132)),
            ..base.rates
        };
        Target { name: "sm_90a".into(), rates, library: Some(LARGE), ..base }
    }

    /// A B200, by its published figures.
    pub fn sm_100() -> Target {
        let base = Target::sm_80();
        let rates = Rates {
            bandwidth: 0.8 * 8e12,
            products: 0.7 * 2250e12,
            convolutions: 0.5 * 2250e12,
            points: 40e12,
            wide_products: 28.0, // 80 TFLOP/s in f32
            waves: Some(Waves::of(148)),
            ..base.rates
        };
        Target { name: "sm_100".into(), rates, library: Some(LARGE), ..base }
    }

    /// The named descriptions that ship with alip.
    pub fn all() -> Vec<Target> {
        vec![Target::cpu(), Target::cpu_mixed(), Target::wgpu(), Target::sm_80(), Target::sm_90a(), Target::sm_100()]
    }

    /// The one with this name, perhaps with other limits.
    pub fn named(name: &str) -> Option<Target> {
        Target::parse(name).ok()
    }

    /// As [`Target::named`].
    ///
    /// # Errors
    /// Why there is none.
    pub fn parse(name: &str) -> Result<Target, String> {
        let known = |name: &str| {
            let all = Target::all();
            let names: Vec<String> = all.iter().map(|target| target.name.clone()).collect();
            let found = all.into_iter().find(|target| target.name == name);
            found.ok_or_else(|| format!("there is no target `{name}`, but there are {}", names.join(", ")))
        };
        let Some((base, stated)) = name.split_once(':') else { return known(name) };
        let base = known(base)?;
        if base.kind != TargetKind::Wgpu {
            return Err(format!("`{}` has no limits to state", base.name));
        }
        let limits = limits(stated)?;
        let narrow =
            |at: usize| u32::try_from(limits[at]).map_err(|_| format!("`{}={}` is too large", LIMITS[at], limits[at]));
        let target = base.with_limits(limits[0], limits[1], narrow(2)?, narrow(3)?);
        match () {
            // Names are compared, so each target has one.
            () if target.name != name => Err(format!("it is written `{}`", target.name)),
            () if !target.holds(&base) => {
                Err(format!("that is less than `{}` has, which every adapter has", base.name))
            }
            () => Ok(target),
        }
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

/// With what NVIDIA recommends from Hopper on.
const LARGE: Library = Library { workspace_bytes: 32 << 20 };

/// How a name calls its limits: bytes of a segment, bytes of an operand, operands of a kernel, workgroups of a dimension.
const LIMITS: [&str; 4] = ["segment", "binding", "operands", "workgroups"];

/// The limits that a name states, in the order of [`LIMITS`].
fn limits(stated: &str) -> Result<[u64; 4], String> {
    let mut values = [None; 4];
    for part in stated.split(',') {
        let (limit, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(at) = LIMITS.iter().position(|known| *known == limit) else {
            return Err(format!("there is no limit `{limit}`, but there are {}", LIMITS.join(", ")));
        };
        values[at] = Some(value.parse().map_err(|_| format!("`{limit}` needs a whole number, as in `{limit}=8`"))?);
    }
    for (limit, value) in LIMITS.iter().zip(&values) {
        if value.is_none() {
            return Err(format!("it states no `{limit}`; a name states all of {}", LIMITS.join(", ")));
        }
    }
    Ok(values.map(Option::unwrap_or_default))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes and emitters take for granted.
    #[test]
    fn descriptions_are_sound() {
        for target in Target::all() {
            for spacing in [target.packing.trained, target.packing.untrained] {
                assert!(spacing.per_doubling.iter().all(|count| *count > 0 && 12 % count == 0), "{spacing:?}");
                assert!(spacing.multiple > 0, "{spacing:?}");
            }
            let Some(tiles) = target.tiles else { continue };
            let threads = u64::from(target.workgroup_size);
            assert!(tiles.product.is_multiple_of(4) && (tiles.product / 4).pow(2) <= threads, "{tiles:?}");
            assert!(2 * tiles.product * tiles.depth * DType::F32.bytes() <= tiles.workgroup_bytes, "{tiles:?}");
            for count in [threads, tiles.attention, tiles.sum_threads, tiles.kept_rows] {
                assert!(count.is_power_of_two() && count <= threads, "{tiles:?}");
            }
        }
    }

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
        let check = |name: &str, why: &str| assert_eq!(Target::parse(name), Err(why.into()), "{name}");
        check("gpu", "there is no target `gpu`, but there are cpu, cpu_mixed, wgpu, sm_80, sm_90a, sm_100");
        check("gpu:segment=8", "there is no target `gpu`, but there are cpu, cpu_mixed, wgpu, sm_80, sm_90a, sm_100");
        check("cpu:operands=16", "`cpu` has no limits to state");
        let unknown =
            |limit: &str| format!("there is no limit `{limit}`, but there are segment, binding, operands, workgroups");
        check("wgpu:", &unknown(""));
        check("wgpu:foo=3", &unknown("foo"));
        check("wgpu:segment=x", "`segment` needs a whole number, as in `segment=8`");
        let rest = "binding=2147483648,operands=16,workgroups";
        check(&format!("wgpu:segment=4294967296,{rest}=65535,"), &unknown(""));
        check(
            "wgpu:segment=4294967296,operands=16",
            "it states no `binding`; a name states all of segment, binding, operands, workgroups",
        );
        check(&format!("wgpu:segment=4294967296,{rest}=0"), "that is less than `wgpu` has, which every adapter has");
        check(&format!("wgpu:segment=4294967296,{rest}=4294967296"), "`workgroups=4294967296` is too large");
        let turned = "wgpu:binding=2147483648,segment=4294967296,operands=16,workgroups=65535";
        check(turned, &format!("it is written `wgpu:segment=4294967296,{rest}=65535`"));
    }
}
