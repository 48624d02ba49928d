//! Text files that people write.

use std::fs;
use std::path::Path;

use super::DataError;

/// A file of UTF-8 text, with or without a byte order mark.
pub(crate) fn read_text(path: &Path, advice: &str) -> Result<String, DataError> {
    let bytes = fs::read(path).map_err(|error| DataError::file(path, error, advice))?;
    let text = after_mark(path, &bytes)?;
    String::from_utf8(text.to_vec()).map_err(|error| {
        let before = &text[..error.utf8_error().valid_up_to()];
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        // The first wrong byte of the text is that of its line, which ends somewhere behind it.
        let reason = line_text(&text[start..]).err().unwrap_or_default();
        DataError::Line { path: path.to_path_buf(), line, reason }
    })
}

/// What follows the byte order mark of UTF-8, if there is one.
pub(super) fn after_mark<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], DataError> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(DataError::file(path, "UTF-16 text", "save it as UTF-8"));
    }
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))
}

/// The text of a line, or what is wrong with it.
pub(super) fn line_text(line: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(line).map_err(|error| {
        let (before, byte) = (&line[..error.valid_up_to()], line[error.valid_up_to()]);
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        format!(
            "byte {byte:#04x} at column {column} is not UTF-8; is the file Latin-1 or Windows-1252? Convert it: \
             `iconv -f windows-1252 -t utf-8 OLD > NEW`"
        )
    })
}
