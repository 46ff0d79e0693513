//! What only a daemon with local models can show.

mod admin;
mod answers;
mod demo;
mod lacks;
mod logs;
mod prompt_cache;
mod pull;
mod queue;
mod scripted;
mod serve;
mod shutdown;

use std::{fs, path::Path};

use serde_json::{Value, json};

/// The demo model without its ends, and with room for long prompts and answers.
fn endless_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for entry in fs::read_dir("assets/demo-model").unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let change = |name: &str, change: fn(&mut Value)| {
        let path = folder.join(name);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    change("config.json", |config| {
        config["max_position_embeddings"] = json!(10_000_000);
        config["eos_token_id"] = Value::Null;
    });
    change("generation_config.json", |config| config["eos_token_id"] = Value::Null);
    change("tokenizer_config.json", |config| config["eos_token"] = Value::Null);
    change("tokenizer.json", |tokenizer| {
        for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
            token["special"] = json!(false);
        }
    });
}
