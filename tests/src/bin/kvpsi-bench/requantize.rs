//! The same model in another format, by candle's own quantization.

use anyhow::{Context, Result, bail};
use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::Path,
};

pub fn run(model: &Path, to: &str, out: &Path) -> Result<()> {
    let kind = match to {
        "q4_0" => GgmlDType::Q4_0,
        "q8_0" => GgmlDType::Q8_0,
        "f16" => GgmlDType::F16,
        _ => bail!("{to}: only q4_0, q8_0 and f16"),
    };
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
