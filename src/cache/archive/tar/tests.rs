//! Tests of the tar reader and writer.

use super::*;
use crate::cache::scratch::Scratch;

fn read(bytes: &[u8]) -> Result<Vec<(String, TarFile)>, String> {
    read_sized(bytes, bytes.len() as u64)
}

/// Reads an archive that goes on with zeros up to a length.
fn read_sized(bytes: &[u8], length: u64) -> Result<Vec<(String, TarFile)>, String> {
    let scratch = Scratch::new();
    let path = scratch.path().join("x.tar");
    let file = File::create_new(&path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.set_len(length).unwrap();
    let files = list(&File::open(&path).unwrap())?;
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_by_key(|(_, file)| file.offset);
    Ok(files)
}

fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = headers(name, content.len() as u64);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len() + padding(content.len() as u64), 0);
    bytes
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), END.to_vec()].concat()
}

/// A record of an extended header; short ones only.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let length = |digits: usize| rest.len() + digits;
    let digits = (1..4).find(|digits| length(*digits).to_string().len() == *digits);
    format!("{}{rest}", length(digits.unwrap()))
}

/// An entry of any kind, whose header holds `name` as it is.
fn odd(name: &str, kind: char, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, content.len() as u64, kind);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len() + padding(content.len() as u64), 0);
    bytes
}

fn refused(entries: &[Vec<u8>]) -> String {
    read(&archive(entries)).unwrap_err()
}

#[test]
fn what_is_written_is_read() {
    let long = format!("blobs/sha512/{}", "a".repeat(128));
    let bytes = archive(&[
        odd("./", '5', b""),
        odd("blobs/", '5', b""),
        entry(&long, b"content"),
        entry("./index.json", b"{}"),
        entry("empty", b""),
    ]);
    assert_eq!(bytes.len() % 512, 0);
    let files = read(&bytes).unwrap();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [long.as_str(), "index.json", "empty"]);
    let start = usize::try_from(files[0].1.offset).unwrap();
    assert_eq!(&bytes[start..start + 7], b"content");
    assert_eq!(files[2].1.size, 0);
}

#[test]
fn a_size_beyond_octal_digits_is_written_and_read() {
    let size = OCTAL_SIZE_MAX + 1;
    let headers = headers("x", size);
    let length = headers.len() as u64 + size + 2 * BLOCK_BYTES;
    assert_eq!(read_sized(&headers, length).unwrap()[0].1.size, size);
    let pax = [
        odd("pax", 'x', record("size", &size.to_string()).as_bytes()),
        header("x", 0, '0'),
    ];
    let fault = refused(&pax);
    assert!(fault.starts_with("\"x\": has 8589934592 bytes"), "{fault}");
    assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(size));
    for odd in [
        &b"\xff\xff"[..],
        b"8",
        b"-1",
        b"",
        b"1 1",
        b"\x80\x01\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert_eq!(number(odd), None, "{odd:?}");
    }
}

#[test]
fn an_entry_that_is_no_file_or_leads_elsewhere_is_refused_by_name() {
    for name in [
        "../x",
        "a/../../x",
        "a//x",
        "./../x",
        "",
        "/etc/passwd",
        "a\\..\\x",
        "a\nb",
    ] {
        let fault = refused(&[odd(name, '0', b"")]);
        assert_eq!(
            fault,
            format!("{name:?}: leads out of the layout, or is odd")
        );
    }
    assert!(refused(&[odd("../x/", '5', b"")]).starts_with("\"../x/\": leads out"));
    // Links, devices, pipes, sparse files, headers for all files, and what is unknown.
    for kind in "12346SVZgK".chars() {
        let fault = refused(&[odd("x", kind, b"")]);
        assert!(
            fault.starts_with("\"x\": is no file but a link, a device"),
            "{fault}"
        );
        assert!(fault.ends_with(&format!("(type {kind:?})")), "{fault}");
    }
    assert!(refused(&[odd("folder/", '5', b"x")]).contains("is no file"));
    assert!(refused(&[entry("x", b""), entry("./x", b"")]).contains("\"x\": is there twice"));
}

#[test]
fn extended_headers_cannot_say_two_things() {
    let long = "a".repeat(120);
    let named = |records: &str| odd("pax", 'x', records.as_bytes());
    let gnu = odd("././@LongLink", 'L', format!("{long}\0").as_bytes());
    let both = [gnu.clone(), named(&record("path", "b")), entry("c", b"")];
    assert!(refused(&both).contains("says the same twice"));
    let first_name = |entries: &[Vec<u8>]| read(&archive(entries)).unwrap().remove(0).0;
    assert_eq!(first_name(&[gnu.clone(), entry("c", b"")]), long);
    assert_eq!(
        first_name(&[named(&record("mtime", "1.5")), entry("c", b"")]),
        "c"
    );
    for (entries, why) in [
        (
            vec![gnu.clone(), gnu.clone(), entry("c", b"")],
            "says the same twice",
        ),
        (
            vec![named(&record("path", "../x")), entry("c", b"")],
            "\"../x\": leads out of the layout",
        ),
        (
            vec![named(&record("path", &"a".repeat(256))), entry("c", b"")],
            "is odd",
        ),
        (
            vec![named(&record("GNU.sparse.major", "1")), entry("c", b"")],
            "sparse",
        ),
        (
            vec![named(&record("size", "-1")), entry("c", b"")],
            "of an odd size",
        ),
        (
            vec![named("99 path=x\n"), entry("c", b"")],
            "that cannot be read",
        ),
        (
            vec![named("path=x\n"), entry("c", b"")],
            "that cannot be read",
        ),
        (
            vec![named("99999999999999999999 path=x\n"), entry("c", b"")],
            "that cannot be read",
        ),
        (
            vec![odd("pax", 'x', &vec![b' '; 65537]), entry("c", b"")],
            "has more than 65536 bytes",
        ),
    ] {
        let fault = refused(&entries);
        assert!(fault.contains(why), "{why}: {fault}");
    }
}

#[test]
fn an_archive_that_is_cut_off_or_damaged_is_refused() {
    let whole = archive(&[entry("one", &[7; 1000]), entry("two", b"x")]);
    for length in 0..whole.len() - END.len() {
        let fault = read(&whole[..length]).unwrap_err();
        assert!(fault.contains("cut off"), "{length}: {fault}");
    }
    let mut damaged = whole.clone();
    damaged[1536] ^= 1;
    let fault = read(&damaged).unwrap_err();
    let expected = "after \"one\": no tar header (wrong checksum)";
    assert!(fault.starts_with(expected), "{fault}");
    let huge = [headers("zeros", 10 << 30), END.to_vec()].concat();
    let fault = read(&huge).unwrap_err();
    assert!(
        fault.starts_with("\"zeros\": has 10737418240 bytes"),
        "{fault}"
    );
}

#[test]
fn more_files_than_are_read_are_refused() {
    let files = (0..=FILES_MAX).flat_map(|n| header(&format!("f{n}"), 0, '0'));
    let fault = read(&files.collect::<Vec<u8>>()).unwrap_err();
    assert!(fault.contains("more than 200000 entries"), "{fault}");
}
