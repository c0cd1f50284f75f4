//! Where the members of a zip archive lie in its file.
//!
//! Only what PyTorch writes: members that are stored, not compressed, with the 64-bit extension for large files. The
//! sizes that the archive claims are compared with the file before anything is allocated.

use crate::error::{Error, Result, quote};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const END: u32 = 0x0605_4b50;
const END_LEN: u64 = 22;
const LOCATOR_64: u32 = 0x0706_4b50;
const LOCATOR_64_LEN: u64 = 20;
const END_64: u32 = 0x0606_4b50;
const END_64_LEN: u64 = 56;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const LOCAL_LEN: u64 = 30;
/// The longest directory that is read, in bytes; an LXMERT checkpoint's is 60 kB.
const MAX_DIRECTORY: u64 = 64 << 20;

/// The place of a member's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Byte offset of its local header in the file.
    header: u64,
    /// Size in bytes.
    pub(super) len: u64,
    method: u16,
    flags: u16,
}

/// The directory of a zip archive.
pub(super) struct Archive<'a> {
    path: &'a Path,
    file: &'a File,
    len: u64,
    members: BTreeMap<String, Member>,
}

impl<'a> Archive<'a> {
    /// Reads the directory of `file`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a damaged archive, [`Error::Unsupported`] for one in several parts or with an
    /// absurdly large directory, [`Error::Io`].
    pub(super) fn open(path: &'a Path, file: &'a File) -> Result<Self> {
        let len = file.metadata().map_err(|e| Error::reading(path, e))?.len();
        let mut archive = Archive {
            path,
            file,
            len,
            members: BTreeMap::new(),
        };
        let directory = archive.find_directory()?;
        if directory.len > MAX_DIRECTORY {
            return Err(Error::unsupported(
                path,
                "zip directory",
                format!("its {} bytes are more than {MAX_DIRECTORY}", directory.len),
                "convert the checkpoint to model.safetensors",
            ));
        }
        let bytes = archive.bytes(directory.start, directory.len)?;
        archive
            .parse_directory(&bytes, directory.count)
            .ok_or_else(|| archive.broken("a damaged entry, or not as many as announced"))?;
        Ok(archive)
    }

    /// All member names, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Offset and size in the file of a member's bytes; `None` when there is no such member.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it is compressed or encrypted, [`Error::InvalidFile`] when it leaves the file.
    pub(super) fn locate(&self, name: &str) -> Result<Option<(u64, u64)>> {
        let Some(member) = self.members.get(name) else {
            return Ok(None);
        };
        let field = || format!("zip member {}", quote(name));
        if member.method != 0 || member.flags & 1 != 0 {
            return Err(Error::unsupported(
                self.path,
                field(),
                "is compressed or encrypted; PyTorch stores members as they are",
                "save the checkpoint with torch.save or as model.safetensors",
            ));
        }
        let header = self.bytes(member.header, LOCAL_LEN)?;
        let place = Fields(&header).local().and_then(|skip| {
            let start = member.header + LOCAL_LEN + skip;
            (start.checked_add(member.len)? <= self.len).then_some((start, member.len))
        });
        match place {
            Some(place) => Ok(Some(place)),
            None => Err(Error::invalid(
                self.path,
                field(),
                "does not lie where the directory says",
                "fetch the file again",
            )),
        }
    }

    /// Bytes `start..start + len` of the file, after a check that they lie in it.
    pub(super) fn bytes(&self, start: u64, len: u64) -> Result<Vec<u8>> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.broken("it points outside the file"));
        }
        let mut bytes = vec![0; len as usize];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|e| Error::reading(self.path, e))?;
        Ok(bytes)
    }

    fn broken(&self, problem: &str) -> Error {
        let help = "the file is damaged or was cut short; fetch it again";
        Error::invalid(self.path, "zip directory", problem, help)
    }

    fn find_directory(&self) -> Result<Directory> {
        let tail_len = self.len.min(END_LEN + u64::from(u16::MAX));
        let tail = self.bytes(self.len - tail_len, tail_len)?;
        let found = (0..tail.len().saturating_sub(END_LEN as usize - 1))
            .rev()
            .find_map(|at| Some((at as u64, Fields(&tail[at..]).end(tail.len() - at)?)));
        let Some((at, end)) = found else {
            return Err(self.broken("not found at the end of the file"));
        };
        let position = self.len - tail_len + at;
        if end.is_32_bit() || position < LOCATOR_64_LEN {
            return Ok(end);
        }
        let locator = self.bytes(position - LOCATOR_64_LEN, LOCATOR_64_LEN)?;
        let Some(at) = Fields(&locator).locator_64() else {
            return Ok(end);
        };
        let end_64 = self.bytes(at, END_64_LEN)?;
        Fields(&end_64)
            .end_64()
            .ok_or_else(|| self.broken("its 64-bit form is damaged"))
    }

    /// `None` when an entry is malformed or repeated, or their number is not `count`.
    fn parse_directory(&mut self, bytes: &[u8], count: u64) -> Option<()> {
        let mut fields = Fields(bytes);
        while !fields.0.is_empty() {
            let (name, member) = fields.central()?;
            let fits = member
                .header
                .checked_add(LOCAL_LEN)
                .is_some_and(|end| end <= self.len);
            if !fits || self.members.insert(name, member).is_some() {
                return None;
            }
        }
        (self.members.len() as u64 == count).then_some(())
    }
}

/// Where the directory lies and how many entries it has.
#[derive(Clone, Copy)]
struct Directory {
    start: u64,
    len: u64,
    count: u64,
}

impl Directory {
    /// True when no field is the mark for "see the 64-bit form".
    fn is_32_bit(&self) -> bool {
        self.start != u64::from(u32::MAX)
            && self.len != u64::from(u32::MAX)
            && self.count != u64::from(u16::MAX)
    }
}

/// Little-endian fields at the front of a byte slice; `None` past its end or where a signature is wrong.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn signature(&mut self, expected: u32) -> Option<()> {
        (self.u32()? == expected).then_some(())
    }

    /// The end record of a single-part archive whose comment fills the rest of `remaining` bytes.
    fn end(mut self, remaining: usize) -> Option<Directory> {
        self.signature(END)?;
        let (_disk, _directory_disk, _count_here) = (self.u16()?, self.u16()?, self.u16()?);
        let count = self.u16()?.into();
        let len = self.u32()?.into();
        let start = self.u32()?.into();
        let comment = usize::from(self.u16()?);
        (END_LEN as usize + comment == remaining).then_some(Directory { start, len, count })
    }

    fn locator_64(mut self) -> Option<u64> {
        self.signature(LOCATOR_64)?;
        let _disk = self.u32()?;
        self.u64()
    }

    fn end_64(mut self) -> Option<Directory> {
        self.signature(END_64)?;
        let _sizes_versions_disks_count_here = self.take(8 + 2 + 2 + 4 + 4 + 8)?;
        let (count, len, start) = (self.u64()?, self.u64()?, self.u64()?);
        Some(Directory { start, len, count })
    }

    fn central(&mut self) -> Option<(String, Member)> {
        self.signature(CENTRAL)?;
        let _versions = self.u32()?;
        let (flags, method) = (self.u16()?, self.u16()?);
        let _time_date_checksum = self.u64()?;
        let compressed = self.u32()?;
        let len = self.u32()?;
        let (name_len, extra_len, comment_len) = (self.u16()?, self.u16()?, self.u16()?);
        let _disk_and_attributes = self.u64()?;
        let header = self.u32()?;
        let name = String::from_utf8(self.take(name_len.into())?.to_vec()).ok()?;
        let mut wide = Fields(self.take(extra_len.into())?).extra_64();
        self.take(comment_len.into())?;
        let mut widen = |narrow: u32| match narrow {
            u32::MAX => wide.u64(),
            narrow => Some(narrow.into()),
        };
        let len = widen(len)?;
        let compressed = widen(compressed)?;
        let header = widen(header)?;
        let sizes_agree = method != 0 || len == compressed;
        let member = Member {
            header,
            len,
            method,
            flags,
        };
        sizes_agree.then_some((name, member))
    }

    /// The contents of the 64-bit extra field; empty when there is none.
    fn extra_64(mut self) -> Fields<'a> {
        while let (Some(id), Some(len)) = (self.u16(), self.u16()) {
            match self.take(len.into()) {
                Some(contents) if id == 1 => return Fields(contents),
                Some(_) => {}
                None => break,
            }
        }
        Fields(&[])
    }

    /// Bytes between a local header and the member's data.
    fn local(mut self) -> Option<u64> {
        self.signature(LOCAL)?;
        self.take(22)?;
        Some(u64::from(self.u16()?) + u64::from(self.u16()?))
    }
}
