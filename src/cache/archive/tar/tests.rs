//! Tests of the tar reader and writer.

use super::*;

fn read(bytes: &[u8]) -> Result<Vec<TarFile>, String> {
    let read = |buffer: &mut [u8], offset: u64| {
        let start = usize::try_from(offset).unwrap();
        let piece = bytes.get(start..start + buffer.len());
        buffer.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    list(&read, bytes.len() as u64)
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
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, [long.as_str(), "index.json", "empty"]);
    let start = usize::try_from(files[0].offset).unwrap();
    assert_eq!(&bytes[start..start + 7], b"content");
    assert_eq!(files[2].size, 0);
}

#[test]
fn a_size_beyond_octal_digits_is_written_and_read() {
    let size = OCTAL_SIZE_MAX + 1;
    let headers = headers("x", size);
    let length = headers.len() as u64 + size + 2 * BLOCK_BYTES;
    let read = |buffer: &mut [u8], offset: u64| {
        let start = usize::try_from(offset).unwrap();
        match headers.get(start..start + buffer.len()) {
            Some(piece) => buffer.copy_from_slice(piece),
            None => buffer.fill(0),
        }
        Ok(())
    };
    assert_eq!(list(&read, length).unwrap()[0].size, size);
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
        b"+1",
        b"1 1",
        b"\x80\x01\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert_eq!(number(odd), None, "{odd:?}");
    }
}

#[test]
fn an_entry_that_is_no_file_or_leads_elsewhere_is_refused_by_name() {
    for (name, kind, why) in [
        ("../x", '0', "leads elsewhere"),
        ("a/../../x", '0', "leads elsewhere"),
        ("a//x", '0', "leads elsewhere"),
        ("./../x", '0', "leads elsewhere"),
        ("", '0', "leads elsewhere"),
        ("/etc/passwd", '0', "absolute path"),
        ("a\\..\\x", '0', "odd characters"),
        ("a\nb", '0', "odd characters"),
        ("link", '1', "a hard link"),
        ("link", '2', "a symbolic link"),
        ("tty", '3', "a device"),
        ("sda", '4', "a device"),
        ("pipe", '6', "a named pipe"),
        ("sparse", 'S', "a sparse file"),
        ("volume", 'V', "an unknown type"),
        ("other", 'Z', "an unknown type"),
    ] {
        let fault = refused(&[odd(name, kind, b"")]);
        assert!(fault.contains(why), "{name:?}: {fault}");
        assert!(fault.starts_with(&format!("{name:?}: ")), "{fault}");
    }
    assert!(refused(&[odd("folder/", '5', b"x")]).contains("a directory of 1 bytes"));
    assert!(refused(&[entry("x", b""), entry("./x", b"")]).contains("\"x\": is there twice"));
    assert!(refused(&[entry("x", b""), odd("x/", '5', b"")]).contains("is there twice"));
}

#[test]
fn extended_headers_cannot_say_two_things() {
    let long = "a".repeat(120);
    let named = |records: &str| odd("pax", 'x', records.as_bytes());
    let gnu = odd("././@LongLink", 'L', format!("{long}\0").as_bytes());
    let both = [gnu.clone(), named(&record("path", "b")), entry("c", b"")];
    assert!(refused(&both).contains("names a path twice"));
    assert_eq!(
        read(&archive(&[gnu.clone(), entry("c", b"")])).unwrap()[0].name,
        long
    );
    assert_eq!(
        read(&archive(&[named(&record("mtime", "1.5")), entry("c", b"")])).unwrap()[0].name,
        "c"
    );
    let global = |key, value| odd("pax", 'g', record(key, value).as_bytes());
    for (entries, why) in [
        (
            vec![gnu.clone(), gnu.clone(), entry("c", b"")],
            "of a kind that came before",
        ),
        (vec![gnu], "an extended header alone"),
        (
            vec![named(&record("path", "../x")), entry("c", b"")],
            "\"../x\": is a path that leads",
        ),
        (
            vec![named(&record("path", &"a".repeat(256))), entry("c", b"")],
            "a longer name",
        ),
        (
            vec![named(&record("GNU.sparse.major", "1")), entry("c", b"")],
            "sparse",
        ),
        (
            vec![named(&record("size", "-1")), entry("c", b"")],
            "an odd size",
        ),
        (
            vec![named("99 path=x\n"), entry("c", b"")],
            "cannot be read",
        ),
        (vec![named("path=x\n"), entry("c", b"")], "cannot be read"),
        (
            vec![named("99999999999999999999 path=x\n"), entry("c", b"")],
            "cannot be read",
        ),
        (
            vec![global("size", "7"), entry("c", b"")],
            "names a path or size",
        ),
        (
            vec![odd("pax", 'x', &vec![b' '; 65537]), entry("c", b"")],
            "at most 65536",
        ),
    ] {
        let fault = refused(&entries);
        assert!(fault.contains(why), "{why}: {fault}");
    }
    read(&archive(&[global("comment", "of git"), entry("c", b"")])).unwrap();
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
    assert_eq!(fault, "after \"one\": no tar header (wrong checksum)");
    let huge = [headers("zeros", 10 << 30), END.to_vec()].concat();
    let fault = read(&huge).unwrap_err();
    assert!(
        fault.starts_with("\"zeros\": has 10737418240 bytes"),
        "{fault}"
    );
}

#[test]
fn a_million_entries_are_refused() {
    let length = 512 * 1_000_002;
    let read = |buffer: &mut [u8], offset: u64| {
        buffer.copy_from_slice(&header(&format!("f{offset}"), 0, '0'));
        Ok(())
    };
    let fault = list(&read, length).unwrap_err();
    assert!(fault.contains("more than 200000 entries"), "{fault}");
}
