//! Folders that are damaged in every way we could think of: each must be refused by name, and none may end the process.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Kernels, LoadError, Loader, Model, Progress};
use crate::mlx::Precision;

mod packed;

fn copy_of(golden: &str) -> tempfile::TempDir {
    let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/engine")).join(golden);
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(source).expect("the goldens are part of the repository") {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn load(folder: &Path) -> Result<(), LoadError> {
    let mut loader = Loader::new("m".to_owned(), folder.to_path_buf(), Precision::Float32);
    while !matches!(loader.step()?, Progress::Done(_)) {}
    Ok(())
}

/// The model of a folder, computing so.
fn loaded(folder: &Path, kernels: Kernels) -> Box<Model> {
    let mut loader = Loader::new("m".to_owned(), folder.to_path_buf(), Precision::Float32).with_kernels(kernels);
    loop {
        if let Progress::Done(model) = loader.step().unwrap() {
            return model;
        }
    }
}

fn edit_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// Rewrites the header of a safetensors file, whatever becomes of its data.
fn edit_header(path: &Path, change: impl FnOnce(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    change(&mut header);
    let header = header.to_string();
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header.as_bytes());
    changed.extend(&bytes[8 + size..]);
    fs::write(path, changed).unwrap();
}

fn assert_refused(folder: &Path, named: &[&str]) {
    let error = load(folder).unwrap_err().to_string();
    for name in named {
        assert!(error.contains(name), "{error:?} doesn't name {name:?}");
    }
}

#[test]
fn an_intact_copy_loads() {
    load(copy_of("qwen2-q4-mixed").path()).unwrap();
    load(copy_of("llama-f32-llama3-sharded").path()).unwrap();
}

#[test]
fn a_file_that_is_cut_off_is_refused() {
    let folder = copy_of("qwen3-f32-tied");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 100, 8, 3, 0] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_refused(folder.path(), &["model.safetensors", "damaged"]);
    }
    let mut garbage = bytes;
    garbage[8..40].fill(b'x');
    fs::write(&path, garbage).unwrap();
    assert_refused(folder.path(), &["model.safetensors", "not valid"]);
}

#[test]
fn a_header_that_lies_is_refused() {
    let cases: [(&str, Value); 4] = [
        ("shape", json!([1, 1])),
        ("data_offsets", json!([0, u64::MAX])),
        ("data_offsets", json!([12, 4])),
        ("dtype", json!("F8_E4M3")),
    ];
    for (key, lie) in cases {
        let folder = copy_of("qwen3-f32-tied");
        edit_header(&folder.path().join("model.safetensors"), |header| header["model.norm.weight"][key] = lie);
        assert_refused(folder.path(), &["model.safetensors", "model.norm.weight"]);
    }
}

#[test]
fn tensors_must_be_those_of_the_config() {
    let renamed = copy_of("qwen3-f32-tied");
    edit_header(&renamed.path().join("model.safetensors"), |header| {
        let entry = header.as_object_mut().unwrap().remove("model.norm.weight").unwrap();
        header["model.other.weight"] = entry;
    });
    assert_refused(renamed.path(), &["model.norm.weight", "missing"]);

    let narrower = copy_of("qwen3-f32-tied");
    edit_config(narrower.path(), |config| config["intermediate_size"] = json!(96));
    assert_refused(narrower.path(), &["model.safetensors", "model.layers.0.mlp.gate_proj.weight", "[128, 64]"]);

    let shallower = copy_of("qwen3-f32-tied");
    edit_config(shallower.path(), |config| config["num_hidden_layers"] = json!(1));
    assert_refused(shallower.path(), &["model.safetensors", "model.layers.1.", "no place"]);

    let deeper = copy_of("qwen3-f32-tied");
    edit_config(deeper.path(), |config| config["num_hidden_layers"] = json!(3));
    assert_refused(deeper.path(), &["model.layers.2.", "missing"]);

    let biased = copy_of("mistral-f32-untied");
    edit_config(biased.path(), |config| config["attention_bias"] = json!(true));
    assert_refused(biased.path(), &["q_proj.bias", "missing"]);
}

#[test]
fn packed_tensors_must_be_what_the_config_names() {
    let folder = copy_of("qwen2-q4-mixed");
    edit_config(folder.path(), |config| config["quantization"]["lm_head"]["bits"] = json!(4));
    assert_refused(folder.path(), &["lm_head.weight", "6 bits", "4"]);

    let dense = copy_of("qwen2-q4-mixed");
    edit_config(dense.path(), |config| config["quantization"]["lm_head"] = json!(false));
    assert_refused(dense.path(), &["lm_head.weight"]);
}

#[test]
fn a_missing_shard_is_named() {
    let folder = copy_of("llama-f32-llama3-sharded");
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_refused(folder.path(), &["model-00002-of-00002.safetensors"]);

    let escape = copy_of("llama-f32-llama3-sharded");
    let index = json!({"weight_map": {"a": "../model.safetensors"}});
    fs::write(escape.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_refused(escape.path(), &["model.safetensors.index.json", "no file of this folder"]);
}

#[test]
fn an_unknown_model_type_is_named() {
    let folder = copy_of("qwen3-f32-tied");
    edit_config(folder.path(), |config| config["model_type"] = json!("mamba"));
    assert_refused(folder.path(), &["mamba", "qwen3"]);
}
