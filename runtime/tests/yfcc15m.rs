//! The way that `docs/yfcc15m.md` tells, command by command, on a short list of photographs served from here.
//!
//! img2dataset is looked for on the path; `ALIP_IMG2DATASET` names the folder that it is in, as `venv/bin`.

#![cfg(all(unix, feature = "compile"))]

use std::fs;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use alip_runtime::data::{RecordioSource, SampleSource};

/// Photographs that there are.
const PHOTOS: u32 = 12;

/// A model that is compiled and trained in seconds, on what `alip_b32` is trained on.
const TINY: &str = r#"Graph(
    name: "tiny",
    base: "alip_b32",
    dims: { "B": Batch(4), "D": 8 },
    parts: {
        "visual": "vit(image: 224, patch: 112, width: 8, layers: 1, heads: 2, out: D)",
        "text": "text_transformer(vocab: 49408, context: T, width: 8, layers: 1, heads: 2, out: D)",
    },
)"#;

/// A JPEG.
fn photo(number: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(400 + number, 300, |x, y| image::Rgb([x as u8, y as u8, number as u8 * 20]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

/// Serves `/0.jpg` and so on for as long as the process lives; its address.
fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let name = request.split(' ').nth(1).unwrap_or_default().trim_matches('/').trim_end_matches(".jpg");
                let (status, body) = match name.parse::<u32>().ok().filter(|number| *number < PHOTOS) {
                    Some(number) => ("200 OK", photo(number)),
                    None => ("404 Not Found", Vec::new()),
                };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            });
        }
    });
    format!("http://{address}")
}

/// Where img2dataset is.
fn img2dataset() -> Option<PathBuf> {
    let given = std::env::var_os("ALIP_IMG2DATASET").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = given.or_else(|| std::env::split_paths(&path).find(|folder| folder.join("img2dataset").is_file()));
    if found.is_none() {
        // The macros that print would be captured.
        let line = "skipped: the_way_from_a_list_to_a_run: needs img2dataset (`pip install img2dataset`)\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    found
}

/// The commands of the text, and its program.
fn told() -> (Vec<String>, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/yfcc15m.md");
    let text = fs::read_to_string(path).unwrap().replace("\\\n", " ");
    let commands = text.lines().filter_map(|line| line.strip_prefix("    $ ")).map(str::to_string).collect();
    let program = text.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    (commands, program.unwrap().to_string())
}

#[test]
fn the_way_from_a_list_to_a_run() {
    let Some(tools) = img2dataset() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (at, address) = (folder.path(), serve());
    // One photograph is gone.
    let lines = (0..=PHOTOS).map(|number| format!("{address}/{number}.jpg\tphoto number {number}\n"));
    fs::write(at.join("yfcc15m.tsv"), lines.fold("url\tcaption\n".to_string(), |text, line| text + &line)).unwrap();
    fs::write(at.join("tiny.ron"), TINY).unwrap();
    let (commands, program) = told();
    let model = "def describe(photo):\n    return 'a picture of %d bytes' % len(photo)\n\n";
    fs::write(at.join("caption.py"), model.to_string() + &program).unwrap();
    let ours = Path::new(env!("CARGO_BIN_EXE_alip-run")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{}:{path}", ours.display(), tools.display());
    let mut said = Vec::new();
    for command in &commands {
        // Only how large the machine and the model are is another.
        let command = command.replace("--processes_count 16", "--processes_count 1");
        let command = command.replace("train alip_b32", "train tiny.ron --steps 2 --device cpu");
        let done = Command::new("sh").args(["-ec", &command]).current_dir(at).env("PATH", &path).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert!(done.status.success(), "{command}\n{out}{err}");
        said.push((out, err));
    }
    assert_eq!(said.len(), 5);
    let (packed, (_, trained)) = (&said[2].0, &said[4]);
    assert!(packed.starts_with("yfcc15m.rec: 12 samples") && packed.ends_with("skipped 0\n"), "{packed}");
    assert!(trained.contains("2 steps in "), "{trained}");
    let labels = [("raw".to_string(), 77), ("caption".to_string(), 77)];
    let source = RecordioSource::open(at.join("yfcc15m.rec").to_str().unwrap(), &labels).unwrap();
    assert_eq!(source.len(), u64::from(PHOTOS));
}
