//! Shards on servers, read in sequence by ranges.
//!
//! While a piece of a shard is worked on, the next one is on its way: so a stream holds two pieces at most, whatever its reader
//! does. Requests that fail are made again after growing pauses, where another try may help.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt,
};
use object_store::{ObjectStoreScheme, RetryConfig};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use url::Url;

use super::place::{About, Unreachable};
use super::sizes::{self, Sizes};
use crate::data::source::{ListHash, paths};
use crate::data::{DataError, ShardError};

/// Bytes of a request: enough that its delay counts little, and twice as many for each of 256 streams are half a GiB.
const PIECE: u64 = 1 << 20;

/// Requests for the sizes of shards that are made at a time.
const AT_A_TIME: usize = 32;

/// What to do where a shard cannot be had.
const ADVICE: &str = "see whether the server has it, and whether it may be read from here";

/// A shard on a server.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    url: String,
    meta: ObjectMeta,
}

/// A server or a bucket, as a URL names it.
struct Server {
    store: Arc<dyn ObjectStore>,
    /// What comes before the keys.
    root: String,
}

/// The threads on which requests are made.
fn network() -> &'static Runtime {
    static NETWORK: OnceLock<Runtime> = OnceLock::new();
    NETWORK.get_or_init(|| {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        threads.unwrap_or_else(|error| panic!("no threads for requests: {error}"))
    })
}

/// Some tries within a minute: a server that restarts is waited for, one that is not there is named soon.
fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
    RetryConfig { backoff, max_retries: 6, retry_timeout: Duration::from_secs(60) }
}

impl Server {
    /// That of a URL, and what is asked of it. Credentials come from the environment.
    fn of(url: &str) -> Result<(Server, Key), DataError> {
        let fail = |reason: String| DataError::file(Path::new(url), reason, "give the URL of the shards");
        if url.contains('?') {
            return Err(fail("a URL with `?` is not read".into()));
        }
        let parsed = Url::parse(url).map_err(|error| fail(error.to_string()))?;
        let (scheme, key) = ObjectStoreScheme::parse(&parsed).map_err(|error| fail(error.to_string()))?;
        let host = url.find("://").map_or(0, |at| at + 3);
        let slash = url[host..].find('/').ok_or_else(|| fail("it names no file".into()))?;
        let root = url[..=host + slash].to_string();
        // Clients ask for it when they are built. Somebody else's choice is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store: Result<Arc<dyn ObjectStore>, Error> = match (scheme, parsed.scheme()) {
            (ObjectStoreScheme::AmazonS3, "s3") => {
                let built = AmazonS3Builder::from_env().with_url(url).with_retry(retry()).build();
                built.map(|store| Arc::new(store) as _)
            }
            (ObjectStoreScheme::GoogleCloudStorage, _) => {
                let built = GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retry()).build();
                built.map(|store| Arc::new(store) as _)
            }
            (ObjectStoreScheme::MicrosoftAzure, "az") => {
                let built = MicrosoftAzureBuilder::from_env().with_url(url).with_retry(retry()).build();
                built.map(|store| Arc::new(store) as _)
            }
            (_, "http" | "https") => {
                let plain = ClientOptions::new().with_allow_http(parsed.scheme() == "http");
                let built = HttpBuilder::new().with_url(&root).with_client_options(plain).with_retry(retry()).build();
                built.map(|store| Arc::new(store) as _)
            }
            (_, scheme) => {
                return Err(fail(format!(
                    "nothing here reads `{scheme}://`: it is `https`, `http`, `s3`, `gs` or `az`"
                )));
            }
        };
        let store = store.map_err(|error| fail(error.to_string()))?;
        Ok((Server { store, root }, key))
    }

    /// The key of a URL of this server.
    fn key(&self, url: &str) -> Result<Key, DataError> {
        let key = Key::from_url_path(&url[self.root.len()..]);
        key.map_err(|error| DataError::file(Path::new(url), error, "give the URL of the shards"))
    }

    fn remote(&self, meta: ObjectMeta) -> Remote {
        Remote { store: self.store.clone(), url: format!("{}{}", self.root, meta.location), meta }
    }

    /// The shards that a pattern finds.
    fn list(&self, pattern: &str) -> Result<Vec<Remote>, DataError> {
        let fail =
            |reason: String| DataError::file(Path::new(pattern), reason, "name the shards, as in `{00000..00999}.tar`");
        let asked = &pattern[self.root.len()..];
        let wanted = glob::Pattern::new(asked).map_err(|error| fail(format!("not a pattern of paths: {error}")))?;
        let plain = &asked[..paths::pattern_from(asked).unwrap_or(asked.len())];
        let folder = plain.rfind('/').map(|slash| Key::from(&plain[..slash]));
        let found = network().block_on(self.store.list(folder.as_ref()).try_collect::<Vec<ObjectMeta>>());
        let mut found = found.map_err(|error| fail(format!("the server does not list its files: {error}")))?;
        let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        found.retain(|meta| wanted.matches_with(meta.location.as_ref(), options));
        found.sort_by(|a, b| a.location.cmp(&b.location));
        match found.is_empty() {
            true => Err(fail("no file is named like this".into())),
            false => Ok(found.into_iter().map(|meta| self.remote(meta)).collect()),
        }
    }

    /// The shards of these URLs.
    fn head(&self, urls: &[String]) -> Result<Vec<Remote>, DataError> {
        let keys = urls.iter().map(|url| self.key(url)).collect::<Result<Vec<_>, _>>()?;
        let heads = stream::iter(keys.into_iter().zip(urls)).map(|(key, url)| async move {
            let meta = self.store.head(&key).await;
            meta.map_err(|error| DataError::file(Path::new(url), error, ADVICE))
        });
        let metas: Vec<ObjectMeta> = network().block_on(heads.buffered(AT_A_TIME).try_collect())?;
        Ok(metas.into_iter().map(|meta| self.remote(meta)).collect())
    }
}

impl Remote {
    /// The shards that a URL stands for: braces are those of paths, `*` and `[..]` ask the server what it has.
    pub(super) fn all(url: &str) -> Result<Vec<Remote>, DataError> {
        let urls = paths::named(url)?;
        let Some(first) = urls.first() else { return Ok(Vec::new()) };
        let server = Server::of(first)?.0;
        if let Some(other) = urls.iter().find(|url| !url.starts_with(&server.root)) {
            let reason = format!("not on {}, where the first shard lies", server.root);
            return Err(DataError::file(Path::new(other), reason, "give shards of one server"));
        }
        let found = if urls.iter().any(|url| url.contains(['*', '['])) {
            let listed = urls.iter().map(|url| server.list(url)).collect::<Result<Vec<_>, _>>()?;
            listed.into_iter().flatten().collect()
        } else {
            server.head(&urls)?
        };
        let mut seen = HashSet::new();
        match found.iter().find(|remote| !seen.insert(remote.url.as_str())) {
            Some(twice) => Err(DataError::file(&twice.path(), "named twice", "name every shard once")),
            None => Ok(found),
        }
    }

    /// Its URL, to be shown.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(&self.url)
    }

    /// What is known of it. Its version is what the server says of it.
    pub(super) fn about(&self) -> About {
        let mut version = ListHash::default();
        version.add(self.meta.last_modified.to_rfc3339().as_bytes());
        version.add(self.meta.e_tag.as_deref().unwrap_or_default().as_bytes());
        About { name: self.url.clone().into_bytes(), bytes: self.meta.size, version: version.value().into() }
    }

    /// What the file in its folder says of shards.
    pub(super) fn sizes(&self, folder: &Path) -> Result<Sizes, DataError> {
        let path = folder.join(sizes::FILE);
        let folder = self.meta.location.as_ref().rsplit_once('/').map_or("", |(folder, _)| folder);
        let key = Key::from(format!("{folder}/{}", sizes::FILE));
        let text = network().block_on(async { self.store.get(&key).await?.bytes().await });
        match text {
            Ok(text) => sizes::parse(&path, &text),
            // Who may not list a bucket is not told that a file is missing.
            Err(Error::NotFound { .. } | Error::PermissionDenied { .. }) => Ok(Sizes::new()),
            Err(error) => Err(DataError::file(&path, error, ADVICE)),
        }
    }

    /// Its bytes.
    pub(super) fn open(&self) -> Result<Box<dyn Read + Send>, ShardError> {
        let reader = Reader { remote: self.clone(), asked: 0, piece: io::Cursor::default(), next: None };
        Ok(Box::new(reader))
    }
}

/// What a request gives.
type Piece = Result<object_store::Result<Bytes>, tokio::task::JoinError>;

/// Reads a shard piece by piece.
struct Reader {
    remote: Remote,
    /// How much was asked for.
    asked: u64,
    piece: io::Cursor<Bytes>,
    next: Option<JoinHandle<object_store::Result<Bytes>>>,
}

impl Reader {
    /// Asks for the next piece, if there is one.
    fn ask(&mut self) {
        let Remote { store, meta, .. } = self.remote.clone();
        let range = self.asked..(self.asked + PIECE).min(meta.size);
        self.asked = range.end;
        self.next = (!range.is_empty()).then(|| {
            // Another version of it would not go on where this one ends.
            let if_match = meta.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
            let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match, ..GetOptions::default() };
            network().spawn(async move { store.get_opts(&meta.location, options).await?.bytes().await })
        });
    }

    /// The piece that was asked for.
    fn taken(&self, at: u64, wanted: u64, piece: Piece) -> io::Result<Bytes> {
        let reason = match piece {
            Ok(Ok(bytes)) if bytes.len() as u64 == wanted => return Ok(bytes),
            Ok(Ok(bytes)) => format!("the server gave {} bytes instead of {wanted}", bytes.len()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(io::Error::other(Unreachable {
            reason: format!("cannot be read from byte {at} on: {reason}"),
            advice: ADVICE.into(),
        }))
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.position() == self.piece.get_ref().len() as u64 {
            if self.next.is_none() {
                self.ask();
            }
            let Some(next) = self.next.take() else { return Ok(0) };
            let end = self.asked;
            let at = (end - 1) / PIECE * PIECE;
            let piece = self.taken(at, end - at, network().block_on(next))?;
            self.ask();
            self.piece = io::Cursor::new(piece);
        }
        self.piece.read(buffer)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(next) = &self.next {
            next.abort();
        }
    }
}
