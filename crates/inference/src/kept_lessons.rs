//! What loads have taught, kept over restarts in a file of one line each. It is worth a few gigabytes of slack and no more: what
//! cannot be read or written is learned again.

use std::io::{ErrorKind, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::serving::Lesson;
use tracing::warn;

/// Years of loads; the oldest lines go.
const MOST_LINES: usize = 20_000;

/// What is kept in `file`, and how more is.
pub fn open(file: Utf8PathBuf) -> (Vec<Lesson>, impl Fn(Lesson) + Send + Sync) {
    let kept = read(&file);
    let keep = move |lesson: Lesson| {
        if let Err(error) = append(&file, &lesson) {
            warn!("{error}: what this load took is forgotten at the next restart");
        }
    };
    (kept, keep)
}

fn read(file: &Utf8Path) -> Vec<Lesson> {
    let text = match fs_err::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!("{error}: what loads take is learned anew");
            return Vec::new();
        }
    };
    let lines: Vec<&str> = text.lines().collect();
    let latest = &lines[lines.len().saturating_sub(MOST_LINES)..];
    let lessons: Vec<Lesson> = latest.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // A crash leaves half a line, another version may leave lines that are not understood.
    if (lessons.len() < lines.len() || !(text.is_empty() || text.ends_with('\n')))
        && let Err(error) = write_anew(file, &lessons)
    {
        warn!("{error}: {file} keeps lines that nobody reads");
    }
    lessons
}

fn write_anew(file: &Utf8Path, lessons: &[Lesson]) -> std::io::Result<()> {
    let lines = lessons.iter().map(line).collect::<Result<String, _>>()?;
    let new = file.with_extension("new");
    fs_err::write(&new, lines)?;
    fs_err::File::open(&new)?.sync_all()?;
    fs_err::rename(&new, file)
}

fn append(file: &Utf8Path, lesson: &Lesson) -> std::io::Result<()> {
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(line(lesson)?.as_bytes())
}

fn line(lesson: &Lesson) -> std::io::Result<String> {
    Ok(serde_json::to_string(lesson)? + "\n")
}

#[cfg(test)]
mod tests {
    use fettle_placement::estimate::residuals::{Kind, Load};
    use fettle_placement::id::RecipeId;
    use fettle_placement::quantity::{Bytes, Millis};
    use fettle_placement::recipe::{EngineKind, KvType};

    use super::*;

    fn lesson(peak: u64) -> Lesson {
        let kind = Kind {
            engine: EngineKind::LlamaServer,
            build: String::new(),
            architecture: "qwen3".into(),
            quant: String::new(),
            kv: KvType::F16,
            tp: 1,
            device: "H200".into(),
            driver_major: 0,
        };
        let load = Load { estimate: Bytes::gib(20), peak: Bytes::gib(peak) };
        Lesson { recipe: RecipeId::new("llama-server ctx8192 0a1b2c3d"), kind, load, took: Millis::secs(9) }
    }

    #[test]
    fn what_was_learned_is_there_again_whatever_a_crash_left_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("loads.jsonl")).unwrap();
        let (kept, keep) = open(file.clone());
        assert_eq!(kept, []);
        [21, 22].map(lesson).into_iter().for_each(keep);

        let whole = fs_err::read_to_string(&file).unwrap();
        fs_err::write(&file, format!("{whole}{}", &whole[..40])).unwrap();
        let (kept, keep) = open(file.clone());
        assert_eq!(kept, [lesson(21), lesson(22)]);
        keep(lesson(23));
        assert_eq!(open(file).0, [21, 22, 23].map(lesson));
    }
}
