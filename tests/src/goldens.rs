//! The golden data of `tests/goldens`, whose README says what every name means.
//!
//! Loading panics with a message that names the file: the files are part of the project, so a missing or damaged one
//! is a fault of the checkout and never of a user.

use std::collections::BTreeMap;
use std::ops::Index;
use std::path::{Path, PathBuf};

use alip_plan::bounds::{self, Violation};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// An array of numbers, whatever its dtype was, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Length of each dimension; none for a scalar.
    pub shape: Vec<usize>,
    /// The entries. Integers up to 2^53 are exact, which token ids and counters are.
    pub values: Vec<f64>,
}

/// Tensors by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Names and tensors, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Keeps the tensors whose names satisfy a condition.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| keep(name));
    }

    /// Series of which only so many entries are left.
    pub fn shortened(mut self, entries: usize) -> Self {
        for tensor in self.0.values_mut() {
            tensor.values.truncate(entries);
            tensor.shape = vec![tensor.values.len()];
        }
        self
    }

    /// The tensors whose names start with `prefix`, under the rest of their names: `section("f64.")` of a golden file
    /// is the truth, without the prefix.
    pub fn section(&self, prefix: &str) -> Self {
        let rest = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()));
        Self(self.0.iter().filter_map(rest).collect())
    }
}

impl Index<&str> for Tensors {
    type Output = Tensor;
    fn index(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("no tensor `{name}` among {:?}", self.0.keys().collect::<Vec<_>>()))
    }
}

/// Where a golden file lies, such as `alip_tiny/weights_initial.safetensors`.
pub fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(file)
}

/// All tensors of a golden safetensors file, such as `alip_tiny/step1.safetensors`.
pub fn load(file: &str) -> Tensors {
    read(&path(file)).unwrap_or_else(|error| panic!("golden file {file}: {error}"))
}

/// All of a golden JSON file, such as `optim/one_cycle_20.json`.
pub fn json(file: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("golden file {file}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("golden file {file}: {error}"))
}

/// All tensors of any safetensors file, as f64: also what `alip-run replay` wrote.
///
/// # Errors
/// The file cannot be read, is not safetensors, or holds a dtype other than F64, F32, I64, I32, U8 and BOOL.
pub fn read(path: &Path) -> Result<Tensors, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
    file.iter().map(|(name, view)| Ok((name.to_owned(), tensor(name, &view)?))).collect::<Result<_, _>>().map(Tensors)
}

fn tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, String> {
    /// Little-endian numbers of N bytes.
    fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
    }
    let bytes = view.data();
    let values = match view.dtype() {
        Dtype::F64 => numbers(bytes, f64::from_le_bytes),
        Dtype::F32 => numbers(bytes, |b| f32::from_le_bytes(b).into()),
        Dtype::I64 => numbers(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::I32 => numbers(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::BOOL => numbers(bytes, |[b]| b.into()),
        other => return Err(format!("tensor `{name}` has dtype {other:?}, which goldens do not use")),
    };
    Ok(Tensor { shape: view.shape().to_vec(), values })
}

/// Where a quantity of `step1` stands among the outputs of a `train` that keeps named values.
const STEP1: [(&str, &str); 22] = [
    ("embedding.image", "outputs.x"),
    ("embedding.raw", "outputs.tr"),
    ("embedding.caption", "outputs.tc"),
    ("logit_scale_exp", "outputs.s"),
    ("loss.rows_raw", "outputs.rows_raw"),
    ("loss.rows_caption", "outputs.rows_caption"),
    ("loss.loss_raw", "loss_raw"),
    ("loss.loss_caption", "loss_caption"),
    ("loss.loss", "loss"),
    ("gate.text_sim", "outputs.lcg.sim"),
    ("gate.raw_sim", "outputs.dcg_raw.sim"),
    ("gate.caption_sim", "outputs.dcg_caption.sim"),
    ("gate.text_momentum", "text_momentum"),
    ("gate.raw_momentum", "raw_momentum"),
    ("gate.caption_momentum", "caption_momentum"),
    ("gate.sample_weight_unclamped", "outputs.gate"),
    ("gate.sample_weight", "outputs.sample_weight"),
    ("gate.raw_weight_ungated", "outputs.dcg_raw.ungated"),
    ("gate.raw_weight", "outputs.raw_weight"),
    ("gate.caption_weight_ungated", "outputs.dcg_caption.ungated"),
    ("gate.caption_weight", "outputs.caption_weight"),
    ("grad_norm", "grad_norm"),
];

/// Every quantity of a golden `step1` but activations and gradients of embeddings: its name, the output of `train` that
/// holds it, and the truth.
pub fn step1(golden: &Tensors) -> Vec<(&str, &'static str, &Tensor)> {
    let apart = ["activation.", "embedding_grad.", "relu_margin"];
    let quantities = golden.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("f64.")?, tensor)));
    quantities
        .filter(|(name, _)| !apart.iter().any(|apart| name.starts_with(apart)))
        .map(|(name, tensor)| {
            let output = STEP1.iter().find(|(quantity, _)| *quantity == name);
            (name, output.unwrap_or_else(|| panic!("no output for {name}")).1, tensor)
        })
        .collect()
}

/// The entries of a parameter (or of its gradient) that can be compared: all but key biases, whose true gradient is
/// zero and whose f32 gradient is noise.
pub fn without_key_bias(path: &str, values: &[f64]) -> Vec<f64> {
    if path.ends_with("attn.in_proj_bias") {
        let third = values.len() / 3;
        [&values[..third], &values[2 * third..]].concat()
    } else if path.ends_with("attnpool.k_proj.bias") {
        Vec::new()
    } else {
        values.to_vec()
    }
}

/// Compares parameters or their gradients: each tensor of `expected` to `relative` of its largest entry, key
/// biases left out.
///
/// # Errors
/// Every tensor that is missing or out of bound, one line each.
pub fn compare_parameters(actual: &Tensors, expected: &Tensors, relative: f64) -> Result<(), String> {
    every(expected, |path, expected| {
        let actual = without_key_bias(path, &find(actual, path)?.values);
        let expected = without_key_bias(path, &expected.values);
        bounds::assert_within(&actual, &expected, bounds::golden::of_largest(relative, &expected)).map_err(say)
    })
}

/// Compares quantities of step 1 (or any that share a relative bound): each tensor of `expected` to `relative` of its
/// largest entry.
///
/// # Errors
/// Every tensor that is missing or out of bound, one line each.
pub fn compare_outputs(actual: &Tensors, expected: &Tensors, relative: f64) -> Result<(), String> {
    every(expected, |name, expected| {
        let bound = bounds::golden::of_largest(relative, &expected.values);
        bounds::assert_within(&find(actual, name)?.values, &expected.values, bound).map_err(say)
    })
}

/// Compares series of a run in f32 with a whole golden trajectory file: `actual` without prefix, `golden` with its
/// sections `f64.` and `sensitivity.`. Series that `actual` does not hold are not asked for, but at least one
/// must be there. `gate_margin` is a property of the data and has no bound.
///
/// # Errors
/// Every series out of bound, one line each.
pub fn compare_trajectory(actual: &Tensors, golden: &Tensors) -> Result<(), String> {
    let mut expected = golden.section("f64.");
    expected.0.retain(|name, _| name != "gate_margin" && actual.get(name).is_some());
    if expected.0.is_empty() {
        return Err("no series to compare".to_owned());
    }
    every(&expected, |name, expected| {
        let of = if name == "clip_coef" { "grad_norm" } else { name };
        let sensitivity = golden.get(&format!("sensitivity.{of}")).map_or(&[][..], |series| &series.values);
        let bounds = bounds::golden::trajectory(&expected.values, sensitivity);
        bounds::assert_within_each(&find(actual, name)?.values, &expected.values, &bounds).map_err(say)
    })
}

fn every(expected: &Tensors, check: impl Fn(&str, &Tensor) -> Result<(), String>) -> Result<(), String> {
    let failures: Vec<String> =
        expected.iter().filter_map(|(name, tensor)| Some(format!("{name}: {}", check(name, tensor).err()?))).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn find<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor, String> {
    tensors.get(name).ok_or_else(|| "missing".to_owned())
}

fn say(violation: Violation) -> String {
    violation.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alip_plan::bounds::golden::{GRADIENT, STEP_ONE};

    /// Step 1 without what has another bound: gradients, landmarks, and the margin of the ReLUs.
    fn step_one(file: &str, precision: &str) -> Tensors {
        let mut tensors = load(file).section(precision);
        let skipped = ["embedding_grad.", "activation.", "relu_margin"];
        tensors.0.retain(|name, _| !skipped.iter().any(|skipped| name.starts_with(skipped)));
        tensors
    }

    /// The same tensors, the last entry of each moved by four times its bound.
    fn with_error(tensors: &Tensors, bound: impl Fn(&str, &Tensor) -> f64) -> Tensors {
        let mut wrong = tensors.clone();
        for (name, tensor) in &mut wrong.0 {
            let error = 4.0 * bound(name, tensor);
            if let Some(value) = tensor.values.last_mut() {
                *value += error;
            }
        }
        wrong
    }

    fn failures(result: Result<(), String>) -> usize {
        result.err().map_or(0, |text| text.lines().count())
    }

    #[test]
    fn step_one_of_pytorch_in_f32_is_within_bounds_and_injected_errors_are_not() {
        for file in ["alip_tiny/step1", "alip_tiny/step1_mid", "alip_tiny_rn/step1"] {
            let file = format!("{file}.safetensors");
            let (single, double) = (step_one(&file, "f32."), step_one(&file, "f64."));
            compare_outputs(&single, &double, STEP_ONE).unwrap_or_else(|report| panic!("{file}\n{report}"));
            let wrong = with_error(&single, |name, _| STEP_ONE * bounds::largest(&double[name].values));
            assert_eq!(failures(compare_outputs(&wrong, &double, STEP_ONE)), double.iter().count(), "{file}");
        }
    }

    #[test]
    fn trajectories_of_pytorch_in_f32_are_within_bounds_and_injected_errors_are_not() {
        for file in ["alip_tiny/trajectory", "alip_tiny/trajectory_mid", "alip_tiny_rn/trajectory"] {
            let golden = load(&format!("{file}.safetensors"));
            let single = golden.section("f32.");
            compare_trajectory(&single, &golden).unwrap_or_else(|report| panic!("{file}\n{report}"));
            let wrong = with_error(&single, |name, series| {
                let of = if name == "clip_coef" { "grad_norm" } else { name };
                let sensitivity = golden.get(&format!("sensitivity.{of}")).map_or(0.0, |s| bounds::largest(&s.values));
                (4.0 * sensitivity + 1e-6) * series.values.last().map_or(0.0, |value| value.abs())
            });
            assert_eq!(failures(compare_trajectory(&wrong, &golden)), single.iter().count() - 1, "{file}");
        }
        assert!(compare_trajectory(&Tensors::default(), &load("alip_tiny/trajectory.safetensors")).is_err());
    }

    #[test]
    fn comparing_parameters_ignores_key_biases_only() {
        let gradients = load("alip_tiny/grads_step1_f64.safetensors");
        assert_eq!(gradients.iter().count(), 62);
        compare_parameters(&gradients, &gradients, 0.0).unwrap_or_else(|report| panic!("{report}"));
        let mut noisy = gradients.clone();
        for (path, tensor) in &mut noisy.0 {
            if path.ends_with("in_proj_bias") {
                let third = tensor.values.len() / 3;
                tensor.values[third..2 * third].fill(1.0);
            }
        }
        compare_parameters(&noisy, &gradients, 0.0).unwrap_or_else(|report| panic!("{report}"));
        let wrong = with_error(&gradients, |_, tensor| GRADIENT * bounds::largest(&tensor.values));
        assert_eq!(failures(compare_parameters(&wrong, &gradients, GRADIENT)), 62);
        let report = compare_parameters(&Tensors::default(), &gradients, GRADIENT).unwrap_err();
        assert!(report.contains("ln_final.bias: missing"), "{report}");
    }

    #[test]
    fn every_file_loads_and_integers_are_exact() {
        for folder in ["alip_tiny", "alip_tiny_rn", "optim"] {
            for entry in std::fs::read_dir(path(folder)).expect("the goldens are part of the project") {
                let file = entry.expect("a readable folder").path();
                if file.extension().is_some_and(|kind| kind == "safetensors") {
                    let tensors = read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                    for (name, tensor) in tensors.iter() {
                        assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>(), "{name}");
                    }
                }
            }
        }
        let inputs = load("alip_tiny/inputs.safetensors");
        assert_eq!(inputs["batch.0.raw"].shape, [8, 16]);
        assert_eq!(bounds::largest(&inputs["batch.0.raw"].values), 511.0);
        assert_eq!(json("optim/one_cycle_7.json")["total_steps"], 7);
    }
}
