//! Opens `.proto` files and descriptor sets, and tells which of their services
//! are to be served.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use prost::Message;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use protox::Compiler;
use protox::file::{DescriptorSetFileResolver, File, FileResolver, GoogleFileResolver};

use super::mistake::{Mistake, Mistakes, Origin, did_you_mean};
use super::options::{Text, Texts};
use super::settings::{Overlay, Settings};
use crate::message::dialect::Custom;

/// The options file, which every binary carries, whatever is on disk.
const OPTIONS_NAME: &str = "antiphon/v1/options.proto";
const OPTIONS_SOURCE: &str = include_str!("../../proto/antiphon/v1/options.proto");

/// What a route table is made from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `.proto` files whose services are served.
    pub protos: Vec<PathBuf>,
    /// Folders in which imports are looked for. When there are none: for each
    /// file the folder that its package counts from (`proto` for
    /// `proto/payments/v1/payments.proto` of package `payments.v1`), else the
    /// file's own folder; then the current folder.
    pub include_paths: Vec<PathBuf>,
    /// Encoded `FileDescriptorSet`s whose services are served, except those of
    /// packages `google` and `grpc`.
    pub descriptor_sets: Vec<PathBuf>,
    /// Settings by a service's full name.
    pub services: BTreeMap<String, Overlay>,
    /// Settings by `pkg.Service/Method`.
    pub methods: BTreeMap<String, Overlay>,
    /// Headers of the dialect `custom`.
    pub custom_dialect: Option<Arc<Custom>>,
    /// Whether there is a schema registry to ask.
    pub schema_registry: bool,
    /// Whether replies must come to the partition that a request names.
    pub reply_partition: bool,
}

/// All descriptors, and what of them is served.
pub(super) struct Opened {
    pub(super) served: Vec<ServiceDescriptor>,
    pub(super) texts: Texts,
    /// The whole set, without source texts.
    pub(super) descriptor_set: Vec<u8>,
}

/// Opens everything that is named; what can't be opened is a mistake.
pub(super) fn open(sources: &Sources, mistakes: &mut Mistakes) -> Opened {
    let shelf = Rc::new(RefCell::new(Shelf::default()));
    let mut names = shelf.borrow_mut().take_sets(&sources.descriptor_sets, mistakes);
    let named = name_files(sources, mistakes);
    shelf.borrow_mut().take_named(&named, &names, mistakes);
    shelf.borrow_mut().includes = include_paths(sources, &named);
    names.extend(named.into_iter().map(|file| (file.name, false)));

    let mut compiler = Compiler::with_file_resolver(Resolver(Rc::clone(&shelf)));
    compiler.include_imports(true).include_source_info(false);
    for (name, _) in &names {
        if let Err(error) = compiler.open_file(name) {
            let pool = compiler.descriptor_pool();
            mistakes.push(translate(&error, pool, &mut shelf.borrow_mut()));
        }
    }
    let pool = compiler.descriptor_pool();
    let served = names.iter().filter_map(|(name, of_set)| Some((pool.get_file_by_name(name)?, *of_set)));
    let served = served.flat_map(|(file, of_set)| {
        let services: Vec<_> = file.services().collect();
        services.into_iter().filter(move |service| !(of_set && is_foreign(service.package_name())))
    });
    let served = served.collect();
    let descriptor_set = compiler.encode_file_descriptor_set();
    drop(compiler);
    let texts = std::mem::take(&mut shelf.borrow_mut().texts);
    Opened { served, texts, descriptor_set }
}

/// Packages that come along in descriptor sets without being anyone's service.
fn is_foreign(package: &str) -> bool {
    matches!(package.split('.').next(), Some("google" | "grpc"))
}

/// A `.proto` file, and the name by which descriptors know it.
struct Named {
    name: String,
    /// As the user wrote it.
    path: PathBuf,
    canonical: PathBuf,
    /// Folder that `name` counts from.
    root: PathBuf,
}

/// Gives each file a name relative to the most specific folder that holds it.
fn name_files(sources: &Sources, mistakes: &mut Mistakes) -> Vec<Named> {
    let mut named: Vec<Named> = Vec::new();
    for path in &sources.protos {
        let file = match name_file(path, &sources.include_paths, &named) {
            Ok(file) => file,
            Err(mistake) => {
                mistakes.push(mistake);
                continue;
            }
        };
        if !named.iter().any(|other| other.canonical == file.canonical) {
            named.push(file);
        }
    }
    named
}

fn name_file(written: &Path, include_paths: &[PathBuf], others: &[Named]) -> Result<Named, Mistake> {
    let at = Origin::of_file(written);
    let path = on_disk(written, include_paths).ok_or_else(|| {
        let folders: Vec<_> = include_paths.iter().map(|path| path.display().to_string()).collect();
        let hint = (!folders.is_empty()).then(|| format!("looked for it in {}, too", folders.join(", ")));
        at.mistake("no such file").maybe_hint(hint)
    })?;
    if path.is_dir() {
        return Err(at.mistake("is a folder").hint("name each .proto file in it"));
    }
    let canonical = path.canonicalize().map_err(|error| at.mistake(format!("can't be read: {error}")))?;
    let mut roots = if include_paths.is_empty() { guess_roots(&canonical) } else { folders(include_paths) };
    roots.sort_by_key(|root| std::cmp::Reverse(root.components().count()));
    if include_paths.is_empty() {
        roots.splice(0..0, package_root(&canonical));
        roots.push(PathBuf::from("/"));
    }
    let free = |name: &String| others.iter().all(|other| other.name != *name || other.canonical == canonical);
    for root in roots {
        let name = canonical.strip_prefix(&root).ok().and_then(file_name);
        if let Some(name) = name.filter(free) {
            return Ok(Named { name, path, canonical, root });
        }
    }
    let folder = written.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).display();
    Err(at.mistake("is in none of the include paths").hint(format!("add --proto-path {folder}")))
}

/// The file as it is written, or as an import would find it.
fn on_disk(written: &Path, include_paths: &[PathBuf]) -> Option<PathBuf> {
    if written.exists() {
        return Some(written.to_owned());
    }
    include_paths.iter().map(|folder| folder.join(written)).find(|path| path.exists())
}

fn folders(include_paths: &[PathBuf]) -> Vec<PathBuf> {
    include_paths.iter().filter_map(|path| path.canonicalize().ok()).collect()
}

fn guess_roots(canonical: &Path) -> Vec<PathBuf> {
    let own = canonical.parent().map(Path::to_owned);
    own.into_iter().chain(Path::new(".").canonicalize()).collect()
}

/// The folder from which the file's path spells its package.
fn package_root(canonical: &Path) -> Option<PathBuf> {
    let file = File::open("package", canonical).ok()?;
    let mut root = canonical.parent()?;
    for word in file.file_descriptor_proto().package().rsplit('.').filter(|word| !word.is_empty()) {
        if root.file_name()? != word {
            return None;
        }
        root = root.parent()?;
    }
    Some(root.to_owned())
}

/// The include paths that were given, or those that the files suggest.
fn include_paths(sources: &Sources, named: &[Named]) -> Vec<PathBuf> {
    if !sources.include_paths.is_empty() {
        return sources.include_paths.clone();
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    let own = named.iter().filter_map(|file| file.canonical.parent().map(Path::to_owned));
    let roots = named.iter().map(|file| file.root.clone()).filter(|root| root != Path::new("/"));
    for path in roots.chain(own).chain([PathBuf::from(".")]) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// A relative path with `/` between its parts, as imports have it.
fn file_name(path: &Path) -> Option<String> {
    let parts = path.components().map(|part| match part {
        Component::Normal(part) => part.to_str(),
        _ => None,
    });
    let parts: Vec<&str> = parts.collect::<Option<_>>()?;
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Everything that files may come from.
#[derive(Default)]
struct Shelf {
    sets: Vec<DescriptorSetFileResolver>,
    includes: Vec<PathBuf>,
    /// Files that the user named, by name.
    named: HashMap<String, PathBuf>,
    /// The one name of each file on disk.
    names: HashMap<PathBuf, String>,
    texts: Texts,
}

impl Shelf {
    /// Reads descriptor sets, and gives the names of the files in them.
    fn take_sets(&mut self, paths: &[PathBuf], mistakes: &mut Mistakes) -> Vec<(String, bool)> {
        let mut files: BTreeMap<String, (FileDescriptorProto, PathBuf)> = BTreeMap::new();
        let mut names = Vec::new();
        for path in paths {
            let (set, resolver) = match read_set(path) {
                Ok(read) => read,
                Err(mistake) => {
                    mistakes.push(mistake);
                    continue;
                }
            };
            self.sets.push(resolver);
            for mut file in set.file {
                let name = file.name().to_owned();
                file.source_code_info = None;
                match files.get(&name) {
                    None => names.push((name.clone(), true)),
                    Some((other, of)) if *other != file && !is_built_in(&name) => mistakes.push(
                        Origin::of_file(path)
                            .mistake(format!("its {name:?} is not the one in {}", of.display())),
                    ),
                    Some(_) => {}
                }
                files.entry(name).or_insert_with(|| (file, path.clone()));
            }
        }
        names
    }

    fn take_named(&mut self, named: &[Named], in_sets: &[(String, bool)], mistakes: &mut Mistakes) {
        for file in named {
            if in_sets.iter().any(|(name, _)| *name == file.name) && !is_built_in(&file.name) {
                let what = format!("{:?} is in a descriptor set, too", file.name);
                mistakes.push(Origin::of_file(&file.path).mistake(what).hint("name one of the two"));
            }
            self.named.insert(file.name.clone(), file.path.clone());
            self.names.insert(file.canonical.clone(), file.name.clone());
            self.texts.files.insert(file.name.clone(), Text { path: file.path.clone(), lines: Vec::new() });
        }
    }

    fn open(&mut self, name: &str) -> Result<File, protox::Error> {
        if name == OPTIONS_NAME {
            return File::from_source(name, OPTIONS_SOURCE);
        }
        if let Ok(file) = GoogleFileResolver::new().open_file(name) {
            return Ok(file);
        }
        if let Some(file) = self.sets.iter().find_map(|set| set.open_file(name).ok()) {
            return Ok(file);
        }
        let find = || self.includes.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        let Some(path) = self.named.get(name).cloned().or_else(find) else {
            return Err(protox::Error::file_not_found(name));
        };
        self.open_on_disk(name, &path)
    }

    /// Opens a file, unless it has been opened by another name: then that name
    /// stands for the file, or its messages would be declared twice.
    fn open_on_disk(&mut self, name: &str, path: &Path) -> Result<File, protox::Error> {
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let known = self.names.entry(canonical).or_insert_with(|| name.to_owned());
        if known != name {
            return Ok(File::from(FileDescriptorProto {
                name: Some(name.to_owned()),
                dependency: vec![known.clone()],
                public_dependency: vec![0],
                syntax: Some("proto3".to_owned()),
                ..FileDescriptorProto::default()
            }));
        }
        self.texts.files.insert(name.to_owned(), Text { path: path.to_owned(), lines: Vec::new() });
        let file = File::open(name, path)?;
        if let Some(text) = self.texts.files.get_mut(name) {
            text.lines = file.source().unwrap_or_default().lines().map(str::to_owned).collect();
        }
        Ok(file)
    }
}

/// Whether the binary has this file itself, and uses no other.
fn is_built_in(name: &str) -> bool {
    name == OPTIONS_NAME || GoogleFileResolver::new().open_file(name).is_ok()
}

fn read_set(path: &Path) -> Result<(FileDescriptorSet, DescriptorSetFileResolver), Mistake> {
    let at = Origin::of_file(path);
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => at.mistake("no such file"),
        _ => at.mistake(format!("can't be read: {error}")),
    })?;
    let read = || {
        let set = FileDescriptorSet::decode(bytes.as_slice())?;
        Ok((set, DescriptorSetFileResolver::decode(bytes.as_slice())?))
    };
    read().map_err(|_: prost::DecodeError| {
        at.mistake("is not an encoded FileDescriptorSet")
            .hint("make one with protoc --include_imports --descriptor_set_out=FILE, or name .proto files with --proto")
    })
}

/// Lends the shelf to the compiler.
struct Resolver(Rc<RefCell<Shelf>>);

impl FileResolver for Resolver {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        self.0.borrow_mut().open(name)
    }
}

/// Says what the compiler says, at the place that it says. Its errors show the
/// place only in their `Debug` form, `file:line:column: message`.
fn translate(error: &protox::Error, pool: DescriptorPool, shelf: &mut Shelf) -> Mistake {
    let what = error.to_string();
    let debug = format!("{error:?}");
    let place = error.file().and_then(|file| debug.strip_prefix(file)).unwrap_or_default();
    let mut numbers = place.split(':').skip(1).map_while(|part| part.parse().ok());
    let (line, column) = (numbers.next(), numbers.next());
    let origin = |texts: &Texts| Origin { file: error.file().map(|name| texts.path(name)), line, column };
    if let Some(detail) = error.file().and_then(|name| detail(name, pool, shelf)) {
        let mut mistake = origin(&shelf.texts).mistake(format!("{what}: {detail}"));
        let quoted = detail.split('\'').nth(1).unwrap_or_default();
        let place = error.file().zip(line).and_then(|(file, line)| shelf.texts.find(file, line - 1, quoted));
        if let Some((line, column)) = place {
            (mistake.line, mistake.column) = (Some(line + 1), Some(column + 1));
        }
        return mistake.maybe_hint(did_you_mean(quoted, Settings::NAMES.iter().copied()));
    }
    let hint = hint(&what).map(str::to_owned);
    origin(&shelf.texts).mistake(what).maybe_hint(hint)
}

fn hint(what: &str) -> Option<&'static str> {
    if what.starts_with("import ") && what.ends_with(" not found") {
        let hint = "add the folder that it is in with --proto-path, or make the descriptor set with --include_imports";
        return Some(hint);
    }
    let edition = what.ends_with("found 'edition'") || what.starts_with("unknown syntax 'editions'");
    edition.then_some("editions are not supported; use syntax = \"proto3\"")
}

/// What is wrong within an option in braces: the compiler keeps it to itself,
/// so the file is added once more to the descriptors that it needs.
fn detail(name: &str, mut pool: DescriptorPool, shelf: &mut Shelf) -> Option<String> {
    let file = shelf.open(name).ok()?;
    let error = pool.add_file_descriptor_proto(file.into()).err()?;
    std::error::Error::source(&error).map(ToString::to_string)
}
