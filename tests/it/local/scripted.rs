//! Models that answer as a test has written.
//!
//! One token stands for each prompt that the script knows, and one for each piece of its answer. A token's embedding is a
//! direction of its own, attention and feed-forward add nothing, and the head leads from each token to the next.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

const END: &str = "</s>";

/// A model in the making.
pub struct Scripted {
    template: String,
    /// By its token, which special ones are as they are shown.
    ids: BTreeMap<String, usize>,
    special: Vec<String>,
    follows: Vec<(usize, usize)>,
}

impl Scripted {
    /// A model whose template says this; `PROMPT` in it becomes the token of the last message.
    pub fn new(template: &str) -> Self {
        let mut model =
            Self { template: template.into(), ids: BTreeMap::new(), special: Vec::new(), follows: Vec::new() };
        model.add("<unknown>");
        model.special(END);
        model
    }

    /// A token that is special.
    pub fn special(&mut self, token: &str) -> &mut Self {
        self.special.push(token.to_owned());
        self.add(token);
        self
    }

    /// What is answered to a last message: text piece by piece, or special tokens.
    pub fn answer(&mut self, message: &str, pieces: &[&str]) -> &mut Self {
        let prompt = format!("<prompt:{message}>");
        self.special(&prompt);
        let mut from = self.ids[&prompt];
        for piece in pieces.iter().chain(&[END]) {
            let to = match self.ids.get(*piece).filter(|_| self.special.iter().any(|special| special == piece)) {
                Some(id) => *id,
                // Two pieces of the same text are two tokens, which the decoder shows alike.
                None => self.add(&format!("{piece}⟨{}⟩", self.ids.len())),
            };
            self.follows.push((from, to));
            from = to;
        }
        self
    }

    fn add(&mut self, token: &str) -> usize {
        let next = self.ids.len();
        *self.ids.entry(token.to_owned()).or_insert(next)
    }

    /// Writes the model's folder.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let rows = self.ids.len().next_multiple_of(2);
        fs::write(folder.join("model.safetensors"), self.tensors(rows)).unwrap();
        let json = |name: &str, value: Value| fs::write(folder.join(name), value.to_string()).unwrap();
        json(
            "config.json",
            json!({
                "model_type": "llama", "vocab_size": rows, "hidden_size": rows, "intermediate_size": 2,
                "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2,
                "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "max_position_embeddings": 4096,
                "tie_word_embeddings": false, "eos_token_id": self.ids[END]
            }),
        );
        let special = |token: &String| {
            json!({
                "id": self.ids[token], "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        };
        json(
            "tokenizer.json",
            json!({
                "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
                "pre_tokenizer": { "type": "WhitespaceSplit" },
                "added_tokens": self.special.iter().map(special).collect::<Vec<_>>(),
                "decoder": { "type": "Sequence", "decoders": [
                    { "type": "Replace", "pattern": { "Regex": "⟨[0-9]+⟩" }, "content": "" }, { "type": "Fuse" }
                ]},
                "model": { "type": "WordLevel", "vocab": self.ids, "unk_token": "<unknown>" }
            }),
        );
        let prompts = self.special.iter().filter_map(|token| token.strip_prefix("<prompt:")?.strip_suffix('>'));
        let pick: String = prompts
            .map(|message| format!("{{% if messages[-1].content == '{message}' %}}<prompt:{message}>{{% endif %}}"))
            .collect();
        let template = self.template.replace("PROMPT", &pick);
        json("tokenizer_config.json", json!({ "eos_token": END, "chat_template": template }));
    }

    fn tensors(&self, rows: usize) -> Vec<u8> {
        let square = |ones: &mut dyn Iterator<Item = (usize, usize)>| {
            let mut values = vec![0.0_f32; rows * rows];
            ones.for_each(|(row, column)| values[row * rows + column] = 1.0);
            (vec![rows, rows], values)
        };
        let filled = |shape: Vec<usize>, value: f32| {
            let count = shape.iter().product();
            (shape, vec![value; count])
        };
        let mut tensors = BTreeMap::from([
            ("model.embed_tokens.weight".to_owned(), square(&mut (0..rows).map(|row| (row, row)))),
            ("lm_head.weight".to_owned(), square(&mut self.follows.iter().map(|(from, to)| (*to, *from)))),
            ("model.norm.weight".to_owned(), filled(vec![rows], 4.0)),
        ]);
        let layer = [
            ("input_layernorm", vec![rows]),
            ("post_attention_layernorm", vec![rows]),
            ("self_attn.q_proj", vec![2, rows]),
            ("self_attn.k_proj", vec![2, rows]),
            ("self_attn.v_proj", vec![2, rows]),
            ("self_attn.o_proj", vec![rows, 2]),
            ("mlp.gate_proj", vec![2, rows]),
            ("mlp.up_proj", vec![2, rows]),
            ("mlp.down_proj", vec![rows, 2]),
        ];
        for (name, shape) in layer {
            tensors.insert(format!("model.layers.0.{name}.weight"), filled(shape, 0.0));
        }
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (shape, values)) in tensors {
            let begin = data.len();
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] }));
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }
}
