use fettle_placement::device::ComputeCapability;
use fettle_placement::estimate::estimate;
use fettle_placement::id::RecipeId;
use fettle_placement::recipe::{EngineKind, KvType, Recipe, RunsOn, SleepLevel};

use super::*;

struct Here {
    folder: tempfile::TempDir,
    store: Store,
}

impl Here {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(Utf8Path::from_path(folder.path()).unwrap().join("models"));
        Self { folder, store }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Utf8PathBuf {
        let path = Utf8Path::from_path(self.folder.path()).unwrap().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, bytes).unwrap();
        path
    }
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

/// A header of a llama with two layers, longer than a first look.
fn gguf() -> Vec<u8> {
    let mut keys = Vec::new();
    text(&mut keys, "general.architecture");
    keys.extend(8u32.to_le_bytes());
    text(&mut keys, "llama");
    let numbers = [
        ("block_count", 2),
        ("embedding_length", 128),
        ("context_length", 4096),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 2),
    ];
    for (key, value) in numbers {
        text(&mut keys, &format!("llama.{key}"));
        keys.extend(4u32.to_le_bytes());
        keys.extend::<[u8; 4]>(u32::to_le_bytes(value));
    }
    text(&mut keys, "tokenizer.ggml.tokens");
    keys.extend(9u32.to_le_bytes());
    keys.extend(8u32.to_le_bytes());
    let words = 200_000u64;
    keys.extend(words.to_le_bytes());
    (0..words).for_each(|_| text(&mut keys, "word"));
    let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &7u64.to_le_bytes()].concat();
    [head, keys].concat()
}

fn id(name: &str) -> ModelId {
    ModelId::new(name)
}

#[test]
fn a_file_is_kept_estimated_and_removed() {
    let here = Here::new();
    let bytes = gguf();
    let file = here.write("a.gguf", &bytes);
    let model = here.store.add(&id("Qwen/3"), &file).unwrap();
    assert_eq!(model.bytes(), Bytes::new(bytes.len() as u64));
    assert_eq!(here.store.list().unwrap(), [model]);
    assert!(matches!(here.store.add(&id("Qwen/3"), &file), Err(StoreError::There(_))));
    assert!(here.store.weights(&id("Qwen/3")).unwrap().ends_with("files/a.gguf"));
    let facts = here.store.facts(&id("Qwen/3")).unwrap();
    let recipe = Recipe {
        id: RecipeId::new("r"),
        model: id("Qwen/3"),
        engine: EngineKind::LlamaServer,
        build: String::new(),
        quant: String::new(),
        kv: KvType::F16,
        on: RunsOn::Gpu,
        tp: 1,
        ctx: 1024,
        parallel: 2,
        min_cc: ComputeCapability(8, 0),
        sleep: SleepLevel::Never,
        flags: Vec::new(),
    };
    // Two layers, keys and values of two heads of 16 numbers of two bytes.
    assert_eq!(estimate(&facts, &recipe, Bytes::ZERO).shards[0].kv, Bytes::new(2 * 2 * 2 * 16 * 2 * 2048));
    here.store.remove(&id("Qwen/3")).unwrap();
    assert_eq!(here.store.list().unwrap(), []);
    assert!(matches!(here.store.remove(&id("Qwen/3")), Err(StoreError::Absent(_))));
    assert!(file.exists());
}

#[test]
fn a_folder_is_kept_with_what_its_links_lead_to() {
    let here = Here::new();
    let config = br#"{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 4096}"#;
    let header =
        br#"{"model.layers.0.mlp.up_proj.weight": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 64]].concat();
    let blob = here.write("blobs/1", &file);
    let folder = here.write("snapshot/config.json", config).parent().unwrap().to_owned();
    here.write("snapshot/original/old.bin", b"x");
    std::os::unix::fs::symlink(&blob, folder.join("model.safetensors")).unwrap();
    let model = here.store.add(&id("m"), &folder).unwrap();
    let names: Vec<&str> = model.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    fs_err::remove_file(blob).unwrap();
    assert_eq!(here.store.verify(&id("m")).unwrap(), []);
    assert_eq!(here.store.facts(&id("m")).unwrap().weights.sum(), Bytes::new(64));
    assert!(here.store.weights(&id("m")).unwrap().ends_with("files"));
}

#[test]
fn what_is_no_model_is_not_kept() {
    let here = Here::new();
    let notes = here.write("notes.txt", b"hello");
    assert!(matches!(here.store.add(&id("m"), &notes), Err(StoreError::NoWeights(_))));
    let broken = here.write("a.gguf", b"garbage");
    assert!(matches!(here.store.add(&id("m"), &broken), Err(StoreError::Header(HeaderError::Gguf { .. }))));
    let short = here.write("a.gguf", &gguf()[..1_500_000]);
    assert!(matches!(here.store.add(&id("m"), &short), Err(StoreError::Header(HeaderError::Gguf { .. }))));
    assert_eq!(here.store.list().unwrap(), []);
    // What an interrupted one left is no model, and is done again.
    let whole = here.write("a.gguf", &gguf());
    here.store.add(&id("m"), &whole).unwrap();
    let place = here.store.folder(&id("m"));
    fs_err::remove_file(place.join(MANIFEST)).unwrap();
    assert_eq!(here.store.list().unwrap(), []);
    here.store.add(&id("m"), &whole).unwrap();
}

#[test]
fn a_file_that_changed_is_found() {
    let here = Here::new();
    let bytes = gguf();
    let file = here.write("a.gguf", &bytes);
    here.store.add(&id("m"), &file).unwrap();
    let kept = here.store.weights(&id("m")).unwrap();
    let mut changed = bytes.clone();
    changed[bytes.len() - 1] ^= 1;
    fs_err::write(&kept, &changed).unwrap();
    assert_eq!(here.store.verify(&id("m")).unwrap(), [("a.gguf".to_owned(), Flaw::Digest)]);
    fs_err::write(&kept, b"GGUF").unwrap();
    assert_eq!(here.store.verify(&id("m")).unwrap(), [("a.gguf".to_owned(), Flaw::Size { bytes: 4 })]);
    fs_err::remove_file(&kept).unwrap();
    assert_eq!(here.store.verify(&id("m")).unwrap(), [("a.gguf".to_owned(), Flaw::Missing)]);
}

#[test]
fn ready_models_are_found_by_name() {
    for name in ["codellama:13b", "deepseek-coder:6.7b", "mistral:7b"] {
        let found = ready::find(name).unwrap();
        assert!(found.file.ends_with(".gguf") && found.ctx > 0 && found.parallel > 0);
    }
    assert_eq!(ready::find("gpt-4"), None);
}
