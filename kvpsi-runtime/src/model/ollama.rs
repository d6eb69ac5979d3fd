//! Models in Ollama's store, by the names that people use there.
//!
//! Owns the way from `ollama:NAME[:TAG]` to the file of the weights. Nothing
//! is written or fetched. Invariant: a name and a manifest lead to files inside
//! the store only. Out of scope: Ollama's own templates (Go's, not Jinja) and
//! parameters; the GGUF brings its template.
//!
//! Layout (ollama, `server/modelpath.go`): `manifests/HOST/NAMESPACE/NAME/TAG`
//! is an OCI manifest in JSON, and a layer `sha256:HEX` lies in
//! `blobs/sha256-HEX`.

use super::{gguf::ModelError, open_regular};
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// What a name begins with.
pub const PREFIX: &str = "ollama:";
/// Most bytes of a manifest. Real ones have one or two thousand.
const MOST_MANIFEST: u64 = 1 << 20;
const WEIGHTS: &str = "application/vnd.ollama.image.model";

/// The file of the weights of `name` (without [`PREFIX`]), in the store that
/// OLLAMA_MODELS names, else in the user's or the service's.
///
/// # Errors
/// The name is none, there is no store, or the model is not in it.
pub fn find(name: &str) -> Result<PathBuf, ModelError> {
    let stores = match std::env::var_os("OLLAMA_MODELS").filter(|d| !d.is_empty()) {
        Some(set) => vec![PathBuf::from(set)],
        None => std::env::home_dir()
            .map(|h| h.join(".ollama/models"))
            .into_iter()
            .chain([PathBuf::from("/usr/share/ollama/.ollama/models")])
            .collect(),
    };
    let manifest = manifest(name)?;
    let found = stores.iter().find(|s| s.join(&manifest).is_file());
    match found {
        Some(store) => weights(store, &store.join(&manifest)),
        None => Err(bad(
            name,
            format!(
                "is not in {}: `ollama pull {name}` fetches it, OLLAMA_MODELS names another store",
                stores
                    .iter()
                    .map(|s| s.display().to_string())
                    .collect::<Vec<_>>()
                    .join(" nor ")
            ),
        )),
    }
}

fn bad(name: &str, what: impl Into<String>) -> ModelError {
    ModelError::Format {
        path: format!("{PREFIX}{name}").into(),
        what: what.into(),
    }
}

/// Where the manifest of a name (without [`PREFIX`]) lies in a store.
///
/// # Errors
/// It is no name, or would lead out of the store.
pub fn manifest(name: &str) -> Result<PathBuf, ModelError> {
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, "latest"),
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.len() == 1 {
        parts.insert(0, "library");
    }
    if parts.len() == 2 {
        parts.insert(0, "registry.ollama.ai");
    }
    parts.push(tag);
    let usual = |p: &&str| {
        !p.is_empty()
            && !p.starts_with('.')
            && p.chars().all(|c| c.is_alphanumeric() || "-_.:".contains(c))
    };
    if parts.len() != 4 || !parts.iter().all(usual) {
        return Err(bad(
            name,
            "is no name: NAME, NAME:TAG, USER/NAME:TAG or HOST/USER/NAME:TAG",
        ));
    }
    Ok(["manifests"].iter().chain(&parts).collect())
}

/// The weights that a manifest names.
fn weights(store: &Path, manifest: &Path) -> Result<PathBuf, ModelError> {
    let bad = |what: String| ModelError::Format {
        path: manifest.into(),
        what,
    };
    let mut text = Vec::new();
    let file = open_regular(manifest);
    file.and_then(|file| file.take(MOST_MANIFEST).read_to_end(&mut text))
        .map_err(|e| bad(format!("{e}; `ollama pull` fetches the model again")))?;
    let blob = store.join(blob(&text).map_err(bad)?);
    match blob.is_file() {
        true => Ok(blob),
        false => Err(bad(format!(
            "names {}, which is not there: pull the model again",
            blob.display()
        ))),
    }
}

/// Where the weights that a manifest names lie in a store.
///
/// # Errors
/// In words, to be shown after the manifest's name: it is none, names no weights,
/// or more than weights that kvpsi can use.
pub fn blob(manifest: &[u8]) -> Result<String, String> {
    let json: serde_json::Value =
        serde_json::from_slice(manifest).map_err(|e| format!("is no manifest of Ollama: {e}"))?;
    let layers = || json["layers"].as_array().into_iter().flatten();
    let kind = |layer: &serde_json::Value| layer["mediaType"].as_str().map(str::to_owned);
    // What answers without it is another model.
    let adapter = layers().filter_map(kind).find(|k| k.ends_with(".adapter"));
    if let Some(adapter) = adapter {
        return Err(format!(
            "names an adapter ({}), which kvpsi cannot apply: merge it into its model",
            adapter.escape_debug().take(80).collect::<String>()
        ));
    }
    let mut weights = layers().filter(|l| l["mediaType"] == WEIGHTS);
    let digest = weights.next().and_then(|l| l["digest"].as_str());
    let digest = digest.ok_or_else(|| format!("names no layer of the type {WEIGHTS}"))?;
    if weights.next().is_some() {
        return Err(format!(
            "names several layers of the type {WEIGHTS}: `-m` takes the first file of a model in parts"
        ));
    }
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(format!("blobs/sha256-{hex}"))
        }
        _ => Err("names weights by something else than a SHA-256".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_its_manifest_and_never_out_of_the_store() {
        for (name, want) in [
            (
                "smollm2",
                "manifests/registry.ollama.ai/library/smollm2/latest",
            ),
            (
                "qwen3:0.6b",
                "manifests/registry.ollama.ai/library/qwen3/0.6b",
            ),
            ("me/mine:x", "manifests/registry.ollama.ai/me/mine/x"),
            ("hf.co/a/b-GGUF:Q4_0", "manifests/hf.co/a/b-GGUF/Q4_0"),
            ("localhost:5000/a/b", "manifests/localhost:5000/a/b/latest"),
        ] {
            assert_eq!(manifest(name).unwrap(), Path::new(want), "{name}");
        }
        for name in [
            "",
            ":",
            "a:",
            "../x",
            "a/../../b",
            "/etc/passwd",
            "a/b/c/d",
            "a b",
            "..:x",
        ] {
            let e = manifest(name).unwrap_err().to_string();
            assert!(e.contains("ollama:") && !e.contains('\n'), "{name}: {e}");
        }
    }

    #[test]
    fn the_seeds_of_the_fuzz_target_are_a_manifest_and_a_name() {
        let seed = include_bytes!("../../../fuzz/seeds/ollama/manifest");
        assert_eq!(
            blob(seed).unwrap(),
            format!("blobs/sha256-{}", "5a".repeat(32))
        );
        let name = include_str!("../../../fuzz/seeds/ollama/name");
        manifest(name).unwrap();
    }

    #[test]
    fn a_manifest_leads_to_its_weights_or_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest");
        let hex = "a".repeat(64);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            weights(dir.path(), &path).map_err(|e| e.to_string())
        };
        let layer = |kind: &str, digest: &str| {
            format!(
                r#"{{"layers": [{{"mediaType": "x", "digest": "y"}}, {{"mediaType": "{kind}", "digest": "{digest}"}}]}}"#
            )
        };
        let whole = layer(WEIGHTS, &format!("sha256:{hex}"));
        let with = |kind: &str| {
            let more = format!(r#", {{"mediaType": "{kind}", "digest": "sha256:{hex}"}}]}}"#);
            whole.replace("]}", &more)
        };
        let adapter = with("application/vnd.ollama.image.adapter");
        let second = with(WEIGHTS);
        for (text, says) in [
            ("{", "no manifest"),
            ("[]", "no layer"),
            (&layer("other", "sha256:"), "no layer"),
            (&layer(WEIGHTS, "sha256:../../x"), "SHA-256"),
            (&whole, "not there"),
            (&adapter, "image.adapter"),
            (&second, "several layers"),
        ] {
            let e = read(text).unwrap_err();
            assert!(e.contains(says) && !e.contains('\n'), "{text}: {e}");
        }
        std::fs::remove_file(&path).unwrap();
        let e = weights(dir.path(), &path).unwrap_err().to_string();
        assert!(e.contains("ollama pull") && !e.contains("xtask"), "{e}");
        let blob = dir.path().join(format!("blobs/sha256-{hex}"));
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        std::fs::write(&blob, "GGUF").unwrap();
        assert_eq!(read(&whole).unwrap(), blob);
        // A projector is for pictures: text does not need it.
        let seeing = with("application/vnd.ollama.image.projector");
        assert_eq!(read(&seeing).unwrap(), blob);
    }
}
