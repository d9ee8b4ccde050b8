use std::io::Read as _;

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

/// The same with one tensor of 32 numbers.
fn gguf_with_data() -> Vec<u8> {
    let mut file = gguf();
    file[8..16].copy_from_slice(&1u64.to_le_bytes());
    text(&mut file, "output_norm.weight");
    file.extend([1u32.to_le_bytes(), 32u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
    file.extend([0u32.to_le_bytes(), 0u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
    file.resize(file.len().next_multiple_of(32) + 4 * 32, 7);
    file
}

fn id(name: &str) -> ModelId {
    ModelId::new(name)
}

fn at(path: &Utf8Path) -> Local {
    Local { path: path.to_owned(), links: Links::Refuse }
}

fn add(here: &Here, name: &str, source: &dyn Source) -> Result<Model, StoreError> {
    here.store.add(&id(name), source, &mut |_| ())
}

fn verify(here: &Here, name: &str) -> Vec<(String, Flaw)> {
    here.store.verify(&id(name), &mut |_| ()).unwrap()
}

/// Somebody elsewhere with one file, whose digest is told.
struct Elsewhere {
    name: &'static str,
    content: Vec<u8>,
    told: Vec<u8>,
    /// After so many bytes of an answer it breaks off.
    breaks_at: Option<usize>,
    ranges: bool,
    asked_from: std::cell::RefCell<Vec<u64>>,
}

impl Elsewhere {
    fn with(content: &[u8]) -> Self {
        let (content, told) = (content.to_vec(), content.to_vec());
        Self { name: "a.gguf", content, told, breaks_at: None, ranges: true, asked_from: Vec::new().into() }
    }
}

impl Source for Elsewhere {
    fn offered(&self) -> Result<Vec<Offered>, SourceError> {
        let sha256 = Some(hex::encode(Sha256::digest(&self.told)));
        Ok(vec![Offered { name: self.name.to_owned(), bytes: self.told.len() as u64, sha256 }])
    }

    fn open(&self, _: &Offered, from: u64) -> Result<Opened, SourceError> {
        self.asked_from.borrow_mut().push(from);
        let from = if self.ranges { from } else { 0 };
        let rest = self.content[usize::try_from(from).unwrap()..].to_vec();
        let bytes: Box<dyn std::io::Read> = match self.breaks_at {
            Some(at) => Box::new(std::io::Cursor::new(rest[..at].to_vec()).chain(Broken)),
            None => Box::new(std::io::Cursor::new(rest)),
        };
        Ok(Opened { from, bytes })
    }
}

struct Broken;

impl std::io::Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn a_file_is_kept_estimated_and_removed() {
    let here = Here::new();
    let bytes = gguf();
    let file = here.write("a.gguf", &bytes);
    let mut last = None;
    let model = here.store.add(&id("Qwen/3"), &at(&file), &mut |seen| last = Some((seen.done, seen.total))).unwrap();
    assert_eq!(model.bytes(), Bytes::new(bytes.len() as u64));
    assert_eq!(last, Some((bytes.len() as u64, bytes.len() as u64)));
    assert_eq!(here.store.list().unwrap(), [Entry::Whole(model)]);
    assert!(matches!(add(&here, "Qwen/3", &at(&file)), Err(StoreError::There(_))));
    assert!(here.store.weights(&id("Qwen/3")).unwrap().ends_with("files/a.gguf"));
    let facts = weights::facts(&here.store.weights(&id("Qwen/3")).unwrap()).unwrap();
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
fn links_of_a_folder_are_refused_unless_they_are_to_be_followed() {
    let here = Here::new();
    let config = br#"{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 4096}"#;
    let header =
        br#"{"model.layers.0.mlp.up_proj.weight": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 64]].concat();
    let blob = here.write("blobs/1", &file);
    let folder = here.write("snapshot/config.json", config).parent().unwrap().to_owned();
    here.write("snapshot/original/old.bin", b"x");
    here.write("snapshot/.gitattributes", b"x");
    std::os::unix::fs::symlink(&blob, folder.join("model.safetensors")).unwrap();
    let refused = add(&here, "m", &at(&folder)).unwrap_err();
    assert!(matches!(&refused, StoreError::Offer(e) if e.to_string().contains("is a link")), "{refused:?}");
    let model = add(&here, "m", &Local { path: folder, links: Links::Follow }).unwrap();
    let names: Vec<&str> = model.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    fs_err::remove_file(blob).unwrap();
    assert_eq!(verify(&here, "m"), []);
    assert_eq!(weights::facts(&here.store.weights(&id("m")).unwrap()).unwrap().weights.sum(), Bytes::new(64));
    assert!(here.store.weights(&id("m")).unwrap().ends_with("files"));
}

#[test]
fn what_is_no_model_is_not_kept() {
    let here = Here::new();
    let notes = here.write("notes.txt", b"hello");
    assert!(matches!(add(&here, "m", &at(&notes)), Err(StoreError::NoWeights)));
    let broken = here.write("a.gguf", b"garbage");
    assert!(matches!(add(&here, "m", &at(&broken)), Err(StoreError::Weights(WeightsError::Gguf { .. }))));
    let short = here.write("a.gguf", &gguf()[..1_500_000]);
    assert!(matches!(add(&here, "m", &at(&short)), Err(StoreError::Weights(WeightsError::CutOff(_)))));
    assert_eq!(here.store.list().unwrap(), []);
}

#[test]
fn an_interrupted_one_is_no_model_and_goes_on_where_it_stopped() {
    let here = Here::new();
    let content = gguf();
    let mut elsewhere = Elsewhere { breaks_at: Some(1_000_000), ..Elsewhere::with(&content) };
    assert!(matches!(add(&here, "m", &elsewhere), Err(StoreError::Source { .. })));
    assert_eq!(here.store.list().unwrap(), [Entry::Partial { id: id("m"), bytes: Bytes::new(1_000_000) }]);
    assert!(matches!(here.store.get(&id("m")), Err(StoreError::Absent(_))));
    elsewhere.breaks_at = None;
    add(&here, "m", &elsewhere).unwrap();
    assert_eq!(*elsewhere.asked_from.borrow(), [0, 1_000_000]);
    assert_eq!(verify(&here, "m"), []);
}

#[test]
fn a_beginning_of_something_else_is_brought_anew_and_so_is_one_that_cannot_be_gone_on_with() {
    let here = Here::new();
    let content = gguf();
    let mut other = content.clone();
    other[999_999] ^= 1;
    let broken = Elsewhere { breaks_at: Some(1_000_000), ..Elsewhere::with(&other) };
    assert!(add(&here, "m", &broken).is_err());
    let changed = Elsewhere::with(&content);
    add(&here, "m", &changed).unwrap();
    assert_eq!(*changed.asked_from.borrow(), [1_000_000, 0]);
    assert!(add(&here, "n", &broken).is_err());
    let undivided = Elsewhere { ranges: false, ..Elsewhere::with(&content) };
    add(&here, "n", &undivided).unwrap();
    assert_eq!(*undivided.asked_from.borrow(), [1_000_000]);
    assert_eq!(verify(&here, "n"), []);
}

#[test]
fn bytes_that_are_not_as_they_were_told_are_not_kept() {
    let here = Here::new();
    let content = gguf();
    let mut other = content.clone();
    other[9] ^= 1;
    let changed = Elsewhere { content: other, ..Elsewhere::with(&content) };
    assert!(matches!(add(&here, "m", &changed), Err(StoreError::Changed { .. })));
    let long = Elsewhere { content: [&content[..], b"x"].concat(), ..Elsewhere::with(&content) };
    assert!(matches!(add(&here, "m", &long), Err(StoreError::Long { .. })));
    assert_eq!(here.store.list().unwrap(), []);
    let short = Elsewhere { content: content[..9].to_vec(), ..Elsewhere::with(&content) };
    assert!(matches!(add(&here, "m", &short), Err(StoreError::Short { got: 9, .. })));
}

#[test]
fn hostile_names_and_sizes_are_refused_before_anything_is_asked_for() {
    let here = Here::new();
    let content = gguf();
    for name in ["../a.gguf", "/a.gguf", ".gguf", "a/b.gguf", "a\u{1b}[2J.gguf"] {
        let hostile = Elsewhere { name, ..Elsewhere::with(&content) };
        assert!(matches!(add(&here, "m", &hostile), Err(StoreError::Name(NameError::File(_)))), "{name}");
        assert!(hostile.asked_from.borrow().is_empty());
    }
    assert!(matches!(add(&here, "../m", &Elsewhere::with(&content)), Err(StoreError::Name(NameError::Model(_)))));
    struct Many(Vec<Offered>);
    impl Source for Many {
        fn offered(&self) -> Result<Vec<Offered>, SourceError> {
            Ok(self.0.clone())
        }
        fn open(&self, _: &Offered, _: u64) -> Result<Opened, SourceError> {
            Err("nothing is to be asked for".into())
        }
    }
    let one = |nth: usize, bytes| Offered { name: format!("{nth}.gguf"), bytes, sha256: None };
    let many = Many((0..=bring::MAX_FILES).map(|nth| one(nth, 1)).collect());
    assert!(matches!(add(&here, "m", &many), Err(StoreError::TooManyFiles { .. })));
    assert!(matches!(add(&here, "m", &Many(vec![one(0, u64::MAX), one(1, 9)])), Err(StoreError::TooLarge { .. })));
    // More than any disk of a test has.
    assert!(matches!(add(&here, "m", &Many(vec![one(0, 2 << 40)])), Err(StoreError::NoRoom { .. })));
    assert_eq!(here.store.list().unwrap(), []);
}

#[test]
fn a_link_in_the_store_is_not_written_through() {
    let here = Here::new();
    let victim = here.write("victim", b"precious");
    let content = gguf();
    let broken = Elsewhere { breaks_at: Some(9), ..Elsewhere::with(&content) };
    assert!(add(&here, "m", &broken).is_err());
    let partial = here.store.files(&id("m")).join("a.gguf");
    fs_err::remove_file(&partial).unwrap();
    std::os::unix::fs::symlink(&victim, &partial).unwrap();
    add(&here, "m", &Elsewhere::with(&content)).unwrap();
    assert_eq!(fs_err::read(victim).unwrap(), b"precious");
}

#[test]
fn one_at_a_time_works_on_a_model() {
    let here = Here::new();
    let file = here.write("a.gguf", &gguf());
    let mut met = None;
    here.store
        .add(&id("m"), &at(&file), &mut |_| {
            met.get_or_insert_with(|| (add(&here, "m", &at(&file)), here.store.remove(&id("m"))));
        })
        .unwrap();
    let (added, removed) = met.unwrap();
    assert!(matches!(added, Err(StoreError::Busy(_))), "{added:?}");
    assert!(matches!(removed, Err(StoreError::Busy(_))), "{removed:?}");
    here.store.remove(&id("m")).unwrap();
}

#[test]
fn a_file_that_changed_is_found() {
    let here = Here::new();
    let bytes = gguf();
    let file = here.write("a.gguf", &bytes);
    add(&here, "m", &at(&file)).unwrap();
    let kept = here.store.weights(&id("m")).unwrap();
    let mut changed = bytes.clone();
    changed[bytes.len() - 1] ^= 1;
    fs_err::write(&kept, &changed).unwrap();
    assert_eq!(verify(&here, "m"), [("a.gguf".to_owned(), Flaw::Digest)]);
    fs_err::write(&kept, b"GGUF").unwrap();
    assert_eq!(verify(&here, "m"), [("a.gguf".to_owned(), Flaw::Size { bytes: 4 })]);
    fs_err::remove_file(&kept).unwrap();
    assert_eq!(verify(&here, "m"), [("a.gguf".to_owned(), Flaw::Missing)]);
}

#[test]
fn a_file_that_ends_before_its_last_tensor_is_no_model() {
    let here = Here::new();
    let whole = gguf_with_data();
    let safetensors = |data: usize| {
        let json = br#"{"a":{"dtype":"F16","shape":[2,4],"data_offsets":[0,16]}}"#;
        [&(json.len() as u64).to_le_bytes()[..], json, &vec![7; data]].concat()
    };
    let files = [("a.gguf", whole[..whole.len() - 1].to_vec()), ("b.safetensors", safetensors(15))];
    for (name, bytes) in files {
        let path = here.write(name, &bytes);
        let folder = here.write(&format!("of-{name}/{name}"), &bytes);
        let model = if name == "a.gguf" { path.as_path() } else { folder.parent().unwrap() };
        let refused = add(&here, name, &at(model)).unwrap_err();
        assert!(
            matches!(&refused, StoreError::Weights(WeightsError::Truncated { path, .. }) if path.ends_with(name)),
            "{refused:?}"
        );
        assert_eq!(here.store.list().unwrap(), []);
    }
    add(&here, "a", &at(&here.write("a.gguf", &whole))).unwrap();
}
