//! The same model in another format, by candle's own quantization.

use anyhow::{Context, Result};
use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::Path,
};

/// Writes `model` with every matrix as `kind` to `out`.
///
/// # Errors
/// A file cannot be read or written, or a matrix has no such format.
pub fn requantize(model: &Path, kind: GgmlDType, out: &Path) -> Result<()> {
    let file = File::open(model).with_context(|| model.display().to_string())?;
    let mut file = BufReader::new(file);
    let content = gguf_file::Content::read(&mut file)?;
    let mut tensors = Vec::new();
    for name in content.tensor_infos.keys() {
        let t = content.tensor(&mut file, name, &Device::Cpu)?;
        let t = if t.rank() == 2 {
            QTensor::quantize(&t.dequantize(&Device::Cpu)?, kind)?
        } else {
            t
        };
        tensors.push((name.clone(), t));
    }
    let tensors: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let metadata: Vec<_> = content
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v))
        .collect();
    let file = File::create(out).with_context(|| out.display().to_string())?;
    gguf_file::write(&mut BufWriter::new(file), &metadata, &tensors)?;
    Ok(())
}
