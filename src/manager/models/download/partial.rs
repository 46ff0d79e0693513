//! A file on its way: what has arrived, and its hash.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::PathBuf,
};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use tokio::task::yield_now;

use super::{
    PullError,
    listing::{Checksum, RemoteFile},
};

/// Read at a time when the hash catches up with what is there; between two, the pull can be interrupted.
const CHUNK: usize = 1 << 20;

/// A file of which a beginning is on disk. Bytes go there as they come, so that no interruption costs any.
pub(super) struct Partial<'a> {
    path: PathBuf,
    expected: &'a RemoteFile,
    file: File,
    length: u64,
    hash: Context,
}

impl<'a> Partial<'a> {
    /// Opens what is there, or begins. Reads all of it, for the hash.
    pub(super) async fn open(path: PathBuf, expected: &'a RemoteFile) -> Result<Self, PullError> {
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = open.map_err(|source| PullError::Disk { path: path.clone(), source })?;
        let mut partial = Self { path, file, length: 0, hash: begin(expected), expected };
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = partial.file.read(&mut chunk).map_err(|source| partial.failure(source))?;
            partial.hash.update(&chunk[..read]);
            partial.length += read as u64;
            if partial.length > expected.size {
                partial.clear()?;
            }
            if read == 0 || partial.length == 0 {
                return Ok(partial);
            }
            yield_now().await;
        }
    }

    /// Bytes there.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether all bytes are there.
    pub(super) fn is_whole(&self) -> bool {
        self.length == self.expected.size
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        if bytes.len() as u64 > self.expected.size - self.length {
            let reason = format!("{} is longer than the {} bytes it told", self.expected.name, self.expected.size);
            return Err(PullError::Answer { reason });
        }
        self.file.write_all(bytes).map_err(|source| self.failure(source))?;
        self.length += bytes.len() as u64;
        self.hash.update(bytes);
        Ok(())
    }

    /// Throws away what is there.
    pub(super) fn clear(&mut self) -> Result<(), PullError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(|source| self.failure(source))?;
        self.length = 0;
        self.hash = begin(self.expected);
        Ok(())
    }

    /// Whether a whole file is what the hub says. One that is, is on the disk itself then.
    pub(super) fn verify(&self) -> Result<bool, PullError> {
        let expected = match &self.expected.checksum {
            Some(Checksum::Sha256(hash) | Checksum::GitBlob(hash)) => hash,
            None => return self.sync(),
        };
        let found = self.hash.clone().finish();
        let found: String = found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if found.eq_ignore_ascii_case(expected) { self.sync() } else { Ok(false) }
    }

    fn sync(&self) -> Result<bool, PullError> {
        self.file.sync_all().map(|()| true).map_err(|source| self.failure(source))
    }

    fn failure(&self, source: io::Error) -> PullError {
        PullError::Disk { path: self.path.clone(), source }
    }
}

fn begin(expected: &RemoteFile) -> Context {
    match &expected.checksum {
        Some(Checksum::GitBlob(_)) => {
            let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            hash.update(format!("blob {}\0", expected.size).as_bytes());
            hash
        }
        Some(Checksum::Sha256(_)) | None => Context::new(&SHA256),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(size: u64, checksum: Option<Checksum>) -> RemoteFile {
        RemoteFile { name: "x.json".to_owned(), size, checksum }
    }

    #[tokio::test]
    async fn what_is_there_counts_and_what_is_too_much_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        // `printf 'hello\n' | git hash-object --stdin`
        let expected = file(6, Some(Checksum::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned())));
        let mut partial = Partial::open(path.clone(), &expected).await.unwrap();
        partial.write(b"hel").unwrap();
        drop(partial);
        let mut partial = Partial::open(path.clone(), &expected).await.unwrap();
        assert_eq!((partial.length(), partial.is_whole()), (3, false));
        partial.write(b"lo\n").unwrap();
        assert!(partial.is_whole() && partial.verify().unwrap());
        assert_eq!(partial.write(b"!").unwrap_err().kind(), "answer");
        drop(partial);
        fs::write(&path, "much too long").unwrap();
        let mut partial = Partial::open(path.clone(), &expected).await.unwrap();
        assert_eq!(partial.length(), 0);
        partial.write(b"Hello\n").unwrap();
        assert!(!partial.verify().unwrap());
        partial.clear().unwrap();
        partial.write(b"hello\n").unwrap();
        assert!(partial.verify().unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"hello\n");
    }

    #[tokio::test]
    async fn a_sha256_covers_several_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, vec![0; 2 * CHUNK + 1]).unwrap();
        // `head -c 2097153 /dev/zero | sha256sum`
        let sum = "e9a099c75ef837c28bc91683bee127e463fa0ee10c11fd816f8d2d428c0d610e".to_owned();
        let expected = file(2 * CHUNK as u64 + 1, Some(Checksum::Sha256(sum)));
        assert!(Partial::open(path, &expected).await.unwrap().verify().unwrap());
    }
}
