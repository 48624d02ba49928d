//! Export to ONNX: one file for each of the programs that embed.

use std::path::Path;

use alip_compiler::diag::SourceMap;
use alip_compiler::onnx::{Exported, OnnxError};
use alip_compiler::resolve::Options;
use alip_plan::DType;
use alip_runtime::eval::{ENCODE_IMAGE, ENCODE_TEXT};
use alip_runtime::file::write_bytes;
use alip_runtime::run::SpecSources;
use alip_runtime::run::checkpoint::AVERAGE;
use alip_runtime::weights::Weights;

use crate::model::rendered;
use crate::{Failure, Outcome};

/// Writes `encode_image.onnx` and `encode_text.onnx` into a folder, with weights of these names, or with their averages where there are
/// such.
pub(crate) fn write(from: &SpecSources, weights: &mut Weights, average: bool, folder: &Path) -> Outcome<()> {
    if average && !weights.names().any(|name| name.starts_with(AVERAGE)) {
        return Err(Failure::message(format!("{} keeps no averages of weights (`ema`)", weights.path().display())));
    }
    let options = Options { batch: None, set: from.set.clone(), files: from.files.clone(), ..Default::default() };
    std::fs::create_dir_all(folder)
        .map_err(|error| Failure::message(format!("{}: cannot be made: {error}", folder.display())))?;
    for program in [ENCODE_IMAGE, ENCODE_TEXT] {
        let mut sources = SourceMap::new();
        let exported = Exported::of(&mut sources, &from.spec, &options, program).map_err(|error| match error {
            OnnxError::Spec(errors) => Failure::rendered(rendered(&errors, &sources)),
            error => Failure::message(error),
        })?;
        let file = exported.file(|weight| -> Outcome<Vec<u8>> {
            let name = weights.stored(&weight.path, average);
            let dtype = if weight.dtype == DType::I32 { DType::I32 } else { DType::F32 };
            let tensor = weights.read_as(&name, dtype)?;
            if tensor.shape() != weight.shape {
                let (found, wanted) = (tensor.shape(), &weight.shape);
                let path = weights.path().display();
                return Err(Failure::message(format!("{path}: `{name}` is {found:?}, and the graph has {wanted:?}")));
            }
            Ok(tensor.bytes().to_vec())
        })?;
        write_bytes(&folder.join(format!("{program}.onnx")), &file)?;
    }
    Ok(())
}
