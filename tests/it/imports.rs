//! The paths that a source file names. This reader knows only Rust's modules, `use` trees and
//! `#[cfg(test)]`; `proc-macro2` takes comments, strings and lifetimes apart.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path that a source file names.
pub(crate) struct Named {
    /// Its words. They begin with `crate` where the path leads into this crate from its root.
    pub(crate) path: Vec<String>,
    /// True when only tests name it.
    pub(crate) in_tests: bool,
}

impl Named {
    /// The path as it is written.
    pub(crate) fn text(&self) -> String {
        self.path.join("::")
    }
}

/// What a source file names.
pub(crate) struct Source {
    /// Its paths, `use` trees taken apart.
    pub(crate) paths: Vec<Named>,
    /// Modules in files of their own that only tests or the fuzzer compile.
    pub(crate) test_modules: Vec<Vec<String>>,
}

/// Reads a file; `module` is its own place below the crate's root.
pub(crate) fn read_source(text: &str, module: &[String]) -> Source {
    let mut reader = Reader {
        here: module.to_vec(),
        in_tests: false,
        found: Source {
            paths: Vec::new(),
            test_modules: Vec::new(),
        },
    };
    reader.read(text.parse().expect("Rust"));
    reader.found
}

struct Reader {
    /// The module that is being read.
    here: Vec<String>,
    in_tests: bool,
    found: Source,
}

impl Reader {
    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let outside = self.in_tests;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            match token {
                // `pub(super)` and `pub(in …)` say who may name this item: they name nothing.
                TokenTree::Group(group) if is_visibility(&tokens[..at], group) => at += 1,
                TokenTree::Group(group) => {
                    let name = module_name(&tokens[..at]);
                    self.here.extend(name.clone());
                    self.read(group.stream());
                    self.here
                        .truncate(self.here.len() - usize::from(name.is_some()));
                    self.in_tests |= is_test_attribute(&tokens[..at], group);
                    if group.delimiter() == Delimiter::Brace {
                        self.in_tests = outside;
                    }
                    at += 1;
                }
                TokenTree::Ident(_) if begins_path(&tokens[..at]) => {
                    at = self.tree(&tokens, at, &mut Vec::new());
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    if let (true, Some(name)) = (self.in_tests, module_name(&tokens[..at])) {
                        let module = [self.here.as_slice(), &[name]].concat();
                        self.found.test_modules.push(module);
                    }
                    self.in_tests = outside;
                    at += 1;
                }
                _ => at += 1,
            }
        }
        self.in_tests = outside;
    }

    /// Reads the path, or tree of paths, that begins at `at`. Returns where it ends.
    fn tree(&mut self, tokens: &[TokenTree], mut at: usize, prefix: &mut Vec<String>) -> usize {
        let depth = prefix.len();
        while let Some(TokenTree::Ident(word)) = tokens.get(at) {
            prefix.push(word.to_string());
            at += 1;
            if !is_separator(tokens, at) {
                break;
            }
            at += 2;
            if let Some(TokenTree::Group(group)) = tokens.get(at) {
                let branches: Vec<TokenTree> = group.stream().into_iter().collect();
                self.branches(&branches, prefix);
                prefix.truncate(depth);
                return at + 1;
            }
        }
        let (path, in_tests) = (resolve(prefix, &self.here), self.in_tests);
        self.found.paths.push(Named { path, in_tests });
        prefix.truncate(depth);
        at
    }

    fn branches(&mut self, tokens: &[TokenTree], prefix: &mut Vec<String>) {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let is_alias = at > 0 && matches!(&tokens[at - 1], TokenTree::Ident(i) if i == "as");
            at = match token {
                TokenTree::Ident(word) if word != "as" && !is_alias => {
                    self.tree(tokens, at, prefix)
                }
                _ => at + 1,
            };
        }
    }
}

/// The name of the module that `before` ends with, if it does.
fn module_name(before: &[TokenTree]) -> Option<String> {
    match before {
        [.., TokenTree::Ident(word), TokenTree::Ident(name)] if word == "mod" => {
            Some(name.to_string())
        }
        _ => None,
    }
}

/// True for the brackets of an attribute such as `#[cfg(test)]` or `#[cfg(fuzzing)]`.
fn is_test_attribute(before: &[TokenTree], group: &Group) -> bool {
    let is_attribute = matches!(before.last(), Some(TokenTree::Punct(p)) if p.as_char() == '#');
    let text = group.stream().to_string().replace(' ', "");
    let tests = ["cfg(test)", "cfg(fuzzing)", "cfg(any(fuzzing,test))"];
    is_attribute && tests.contains(&text.as_str())
}

/// True for the parentheses of `pub(super)`.
fn is_visibility(before: &[TokenTree], group: &Group) -> bool {
    let is_after_pub = matches!(before.last(), Some(TokenTree::Ident(word)) if word == "pub");
    is_after_pub && group.delimiter() == Delimiter::Parenthesis
}

/// True when a word after `before` does not go on with a path.
fn begins_path(before: &[TokenTree]) -> bool {
    let count = before.len();
    let goes_on = count >= 3
        && is_separator(before, count - 2)
        && matches!(before[count - 3], TokenTree::Ident(_));
    !goes_on
}

/// True when `::` is at `at`.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    colon(tokens.get(at)) && colon(tokens.get(at + 1))
}

/// The path from the crate's root, if it is one of this crate.
fn resolve(path: &[String], here: &[String]) -> Vec<String> {
    let mut base = match path[0].as_str() {
        "crate" | "aws_ecr_proxy" => Vec::new(),
        "self" | "super" => here.to_vec(),
        _ => return path.to_vec(),
    };
    let mut rest = path;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "super" => drop(base.pop()),
            "self" | "crate" | "aws_ecr_proxy" => {}
            _ => break,
        }
        rest = others;
    }
    [&["crate".to_owned()], base.as_slice(), rest].concat()
}

/// `upstream/client.rs` → `[upstream, client]`; the roots → `[]`.
pub(crate) fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || ["main", "lib"].contains(&path) {
        module.pop();
    }
    module
}

/// Every Rust file below `folder`, as a path from there and its text.
pub(crate) fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).expect("a readable folder");
        let entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap();
                let name = name.to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
