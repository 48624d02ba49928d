//! Shards on a server: one of the tests, on loopback, which may be out of order.

#![cfg(all(unix, feature = "compile", feature = "remote"))]

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{fine, gzip, log, program, refused, said, sequence, specs};

/// How the server answers.
#[derive(Clone, Copy, PartialEq)]
enum Temper {
    Good,
    /// Some of what is asked for is refused at first, and pieces are cut off in the middle, and late.
    Bad,
    /// No range of a file ever comes.
    Worst,
}

/// What the server was asked for: path, and first and last byte of a range.
type Asked = (String, Option<(usize, usize)>);

/// Serves the files of a folder.
fn serve(folder: PathBuf, temper: Temper) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let (kept, seen) = (log.clone(), Arc::new(Mutex::new(HashSet::new())));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (folder, log, seen) = (folder.clone(), kept.clone(), seen.clone());
            // Whoever hangs up is answered no further.
            std::thread::spawn(move || answer(stream, &folder, temper, &log, &seen));
        }
    });
    (url, log)
}

fn answer(
    mut stream: TcpStream,
    folder: &Path,
    temper: Temper,
    log: &Mutex<Vec<Asked>>,
    seen: &Mutex<HashSet<Asked>>,
) -> std::io::Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let mut request = lines.first().map(String::as_str).unwrap_or_default().split(' ');
    let (method, path) = (request.next().unwrap_or_default(), request.next().unwrap_or_default());
    let range = lines.iter().find_map(|line| {
        let range = line.to_lowercase();
        let (first, last) = range.strip_prefix("range: bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    let asked = (path.to_string(), range);
    log.lock().unwrap().push(asked.clone());
    let is_new = seen.lock().unwrap().insert(asked);
    let mut status =
        |status: &str| write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    if method != "GET" && method != "HEAD" {
        return status("405 Method Not Allowed");
    }
    let Ok(file) = fs::read(folder.join(path.trim_start_matches('/'))) else { return status("404 Not Found") };
    let is_refused = range.is_some_and(|(first, _)| first % 3 == 0);
    if range.is_some() && temper == Temper::Worst || is_refused && is_new && temper == Temper::Bad {
        return status("503 Service Unavailable");
    }
    let (first, last) = range.unwrap_or((0, file.len() - 1));
    let body = &file[first..=last.min(file.len() - 1)];
    let (code, of) = match range {
        Some(_) => ("206 Partial Content", format!("Content-Range: bytes {first}-{last}/{}\r\n", file.len())),
        None => ("200 OK", String::new()),
    };
    let dates = "ETag: \"one\"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nConnection: close";
    write!(stream, "HTTP/1.1 {code}\r\nContent-Length: {}\r\n{of}{dates}\r\n\r\n", body.len())?;
    if method == "HEAD" {
        return Ok(());
    }
    let is_cut = temper == Temper::Bad && range.is_some_and(|(first, _)| first % (1 << 20) == 0) && is_new;
    if is_cut {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    stream.write_all(if is_cut { &body[..body.len() / 2] } else { body })
}

/// A pipeline on served shards, beside that on the shards themselves; the graph `remote` on it.
fn remote(at: &Path, url: &str, shards: &str) {
    let data = fs::read_to_string(at.join("shards_data.ron")).unwrap();
    let (before, after) = data.split_once("path: \"").unwrap();
    let after = after.split_once('"').unwrap().1;
    fs::write(at.join("remote_data.ron"), format!("{before}path: \"{url}/shards/{shards}\"{after}")).unwrap();
    fs::write(at.join("remote.ron"), r#"Graph(name: "remote", base: "steady", data: "remote_data")"#).unwrap();
}

/// Whatever becomes of requests, what is read is what is there, and a run goes on.
#[test]
fn a_run_on_a_server_is_the_run_on_a_disk() {
    let folder = specs();
    let at = folder.path();
    sequence(at, "tar.gz", gzip);
    let train = |graph, out, steps| ["train", graph, "--no-eval", "--out", out, "--steps", steps];
    fine(at, &train("sharded", "local", "9"));
    for (name, temper) in [("good", Temper::Good), ("bad", Temper::Bad)] {
        let (url, asked) = serve(at.to_path_buf(), temper);
        remote(at, &url, "{0..2}.tar.gz");
        fine(at, &train("remote", name, "4"));
        fine(at, &["train", "--resume", name, "--steps", "9", "--workers", "1", "--no-eval"]);
        assert_eq!(log(&at.join(name)), log(&at.join("local")), "{name}");
        let asked = asked.lock().unwrap();
        assert!(asked.iter().any(|(path, _)| path == "/shards/sizes.json"));
    }
}

/// Large shards come in pieces, and no more than two of a stream are asked for before one is read.
#[test]
fn shards_come_in_pieces() {
    let folder = specs();
    let at = folder.path();
    let noise: Vec<u8> = (0..3_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    sequence(at, "tar", |shard| {
        let mut large = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(noise.len() as u64);
        large.append_data(&mut header, "__noise__", &noise[..]).unwrap();
        // What follows the first file is the shard.
        let head = large.into_inner().unwrap();
        [&head[..512 + noise.len().next_multiple_of(512)], &shard].concat()
    });
    let (url, asked) = serve(at.to_path_buf(), Temper::Bad);
    remote(at, &url, "{0,2}.tar");
    let out = fine(at, &["data", "./remote_data.ron", "--batch", "4", "--batches", "10"]).0;
    assert!(out.contains("40 samples in ") && out.contains("skipped 0"), "{out}");
    let asked = asked.lock().unwrap();
    let ranges: Vec<(usize, usize)> = asked.iter().filter_map(|(_, range)| *range).collect();
    assert!(ranges.iter().all(|(first, last)| last - first < 1 << 20));
    assert!(ranges.iter().any(|(first, _)| *first > 2 << 20));
    drop(asked);
    fs::write(at.join("shards/sizes.json"), r#"{"0.tar": 9, "2.tar": 8}"#).unwrap();
    let out = fine(at, &["data", "./remote_data.ron", "--batch", "4", "--batches", "2"]).0;
    assert!(out.contains("from Webdataset with 17 samples to"), "{out}");
}

#[test]
fn servers_that_do_not_give_shards() {
    let folder = specs();
    let at = folder.path();
    sequence(at, "tar", |shard| shard);
    let (url, _) = serve(at.to_path_buf(), Temper::Good);
    let data = ["data", "./remote_data.ron", "--batch", "4", "--batches", "2"];
    let check = |url: &str, shards: &str, parts: &[&str]| {
        remote(at, url, shards);
        parts.iter().for_each(|part| refused(at, &data, part));
    };
    let missing = format!("{url}/shards/7.tar: Object at location shards/7.tar not found");
    check(&url, "{0..7}.tar", &[&format!("{url}/shards/3.tar: "), "see whether the server has it"]);
    check(&url, "7.tar", &[&missing]);
    check(&url, "*.tar", &["the server does not list its files: ", "name the shards, as in `{00000..00999}.tar`"]);
    check(&url, "0.tar?token=1", &["a URL with `?` is not read; give the URL of the shards"]);
    check("ftp://127.0.0.1", "0.tar", &["ftp"]);
    let (worst, _) = serve(at.to_path_buf(), Temper::Worst);
    let byte = format!("{worst}/shards/0.tar: cannot be read from byte 0 on: ");
    check(&worst, "0.tar", &[&byte]);
}

/// Sends a file, or nothing, to a server that trusts everybody.
fn put(port: u16, path: &str, body: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let length = body.len();
    write!(stream, "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(body)?;
    let status = BufReader::new(stream).lines().next().transpose()?.unwrap_or_default();
    if status.contains(" 200 ") { Ok(()) } else { Err(std::io::Error::other(status)) }
}

/// Ends a process with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bucket of `moto_server` (`pip install 'moto[server]'`), which `MOTO_SERVER` names: listed by patterns, with credentials from the
/// environment.
#[test]
fn a_bucket_is_read_and_listed() {
    let Some(moto) = std::env::var_os("MOTO_SERVER") else {
        let _ = std::io::stderr().write_all(b"skipped: a_bucket_is_read_and_listed: MOTO_SERVER names no program\n");
        return;
    };
    let folder = specs();
    let at = folder.path();
    sequence(at, "tar", |shard| shard);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let quiet = std::process::Stdio::null;
    let mut server = std::process::Command::new(moto);
    let server = server.args(["-p", &port.to_string()]).stdout(quiet()).stderr(quiet()).spawn().unwrap();
    let _server = Ended(server);
    // It takes some seconds to begin.
    let begun = (0..300).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        put(port, "/photos", b"").is_ok()
    });
    assert!(begun, "moto_server does not answer");
    for shard in ["0.tar", "1.tar", "2.tar"] {
        put(port, &format!("/photos/shards/{shard}"), &fs::read(at.join("shards").join(shard)).unwrap()).unwrap();
    }
    put(port, "/photos/shards/sizes.json", br#"{"0.tar": 9, "1.tar": 7, "2.tar": 8}"#).unwrap();
    let data = |shards: &str| {
        remote(at, "s3://photos", shards);
        let mut data = program(at, &["data", "./remote_data.ron", "--batch", "6", "--batches", "8"]);
        let endpoint = format!("http://127.0.0.1:{port}");
        data.envs([("AWS_ENDPOINT", &*endpoint), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "us-east-1")]);
        data.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]);
        said(data.output().unwrap())
    };
    for shards in ["*.tar", "{0..2}.tar", "[0-2].tar"] {
        let (status, out, err) = data(shards);
        assert_eq!(status, Some(0), "{shards}: {out}{err}");
        assert!(out.contains("from Webdataset with 24 samples to") && out.contains("skipped 0"), "{shards}: {out}");
    }
    let (status, _, err) = data("{0..3}.tar");
    assert_eq!(status, Some(1));
    assert!(err.contains("error: s3://photos/shards/3.tar: Object at location shards/3.tar not found"), "{err}");
    let (_, _, err) = data("x*.tar");
    assert!(err.contains("error: s3://photos/shards/x*.tar: no file is named like this; name the shards"), "{err}");
}
