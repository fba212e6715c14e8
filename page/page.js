// The page of app.py. Pictures go to the server one after the other, in the order they were given.
// What comes back is put on the page by textContent, never as HTML.

const $ = id => document.getElementById(id);
const form = $('settings'), list = $('cards'), dialog = $('camera-dialog');
const about = await (await fetch('model')).json();  // what the server says of itself
const cards = [];  // in the order they were given
const given = { camera: 0, pasted: 0 };  // pictures without a name
let waiting = [], isWorking = false, stopper = new AbortController();

const FALLS = '240 90 0', RISES = '30 90 240';  // as explain.py paints them

const say = text => { $('status').textContent = text; };
const nats = x => x.toLocaleString('en', { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const percent = p => p > .995 ? '> 99 %' : p < 1e-6 ? '< 0.0001 %' :
  `${(100 * p).toLocaleString('en', { maximumSignificantDigits: p < .095 ? 1 : 2 })} %`;

function make(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = text;
  return element;
}

async function ask(path, parameters, file) {  // the answer, or an error that says what is wrong
  if (file.size > about.largest_upload) {
    throw new Error(`it is larger than ${about.largest_upload / 2 ** 20} MB: make it smaller.`);
  }
  let response;
  try {
    const query = new URLSearchParams(parameters);
    response = await fetch(`${path}?${query}`, { method: 'POST', body: file, signal: stopper.signal });
  } catch (error) {
    if (error.name == 'AbortError') throw new Error('stopped');
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Error('it cannot be read: of a folder choose the pictures in it.');
    });
    throw new Error('no answer: is app.py still running?');
  }
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

// ------------------------------------------------------------------------------- one picture

class Card {
  constructor(file, name) {
    Object.assign(this, { file, name, answer: null, rank: 0, word: 0, maps: null });
    this.element = $('card').content.cloneNode(true).firstElementChild;
    this.find('h3').textContent = name;
    this.find('img').src = URL.createObjectURL(file);
    this.find('img').onerror = () => this.isShown(false);
    this.find('img').onload = () => this.isShown(true);
    this.find('.copy').onclick = () => this.copy();
    this.find('.again').onclick = () => isValid() && queue([this]);
    this.find('.explain').onclick = () => this.maps ? this.showMaps(null) : this.explain();
    this.find('canvas').onpointermove = event => this.readMap(event);
    this.find('canvas').onpointerleave = () => this.tellMap();
    this.find('.caption').onkeydown = event => this.step(event);
    this.note('waiting');
  }

  find(selector) { return this.element.querySelector(selector); }
  get caption() { return this.answer.captions[this.rank]; }

  note(text, kind = '') {
    Object.assign(this.find('.note'), { textContent: text, className: `note ${kind}` });
  }

  isShown(yes) {  // by the browser, whose formats are fewer than the server's
    this.element.classList.toggle('unshown', !yes);
    if (!yes && this.answer && !this.hasPreview) this.preview();
  }

  async preview() {
    this.hasPreview = true;
    const blob = await (await ask('preview', {}, this.file)).blob();
    URL.revokeObjectURL(this.find('img').src);
    this.find('img').src = URL.createObjectURL(blob);
  }

  async describe(asked) {
    this.note('describing …');
    this.showMaps(null);
    try {
      this.answer = await (await ask('caption', asked, this.file)).json();
    } catch (error) {
      this.answer = null;
      this.find('.answer').hidden = true;
      return this.note(error.message, 'error');
    } finally {
      this.element.ariaBusy = false;
    }
    this.show();
  }

  show() {
    const { captions, familiarity, is_unfamiliar } = this.answer;
    const doubt = 'Unlike the pictures the model was trained on: doubt its captions.';
    const usual = `More familiar than ${percent(familiarity)} of the validation pictures.`;
    this.note(is_unfamiliar ? doubt : familiarity === null ? '' : usual, is_unfamiliar && 'unlike');
    this.find('tbody').replaceChildren(...captions.map((caption, rank) => {
      const row = document.createElement('tr'), cell = document.createElement('td');
      cell.append(make('button', caption.text,
        { type: 'button', onclick: () => { this.showMaps(null); this.choose(rank); } }));
      row.append(cell, make('td', percent(Math.exp(caption.log_prob_per_word))),
        make('td', percent(Math.exp(caption.log_prob))));
      return row;
    }));
    this.find('.answer').hidden = false;
    this.choose(0);
    this.isShown(!this.element.classList.contains('unshown'));
  }

  choose(rank) {  // one of the captions
    this.rank = rank;
    const { text, words } = this.caption;
    this.find('img').alt = text;
    this.find('tbody').childNodes.forEach((row, i) =>
      row.querySelector('button').setAttribute('aria-pressed', i == rank));
    const parts = [];
    let end = 0;  // of what stands in the caption already
    words.forEach((word, i) => {
      const start = word.text ? text.indexOf(word.text, end) : end;
      parts.push(word.text ? text.slice(end, start) : ' ');
      end = start + word.text.length;
      const button = make('button', word.text || 'end', { type: 'button', tabIndex: i ? -1 : 0 });
      button.className = word.text ? 'word' : 'word end';
      button.style.setProperty('--sure', Math.exp(word.log_prob));
      button.onclick = button.onfocus = button.onpointerenter = () => this.select(i);
      parts.push(button);
    });
    const tail = make('span', '', { className: 'tail' });  // no end on a line of its own
    tail.append(...parts.splice(-3));
    this.find('.caption').replaceChildren(...parts, tail);
    this.word = 0;
    this.find('.rivals').replaceChildren(make('li',
      'Point at a word, or use the arrow keys, to see what else it could have been.'));
  }

  select(index) {  // one of the words of the caption
    this.word = index;
    const buttons = this.find('.caption').querySelectorAll('button');
    buttons.forEach((button, i) => {
      button.setAttribute('aria-pressed', i == index);
      button.tabIndex = i == index ? 0 : -1;
    });
    const { text, log_prob, rivals } = this.caption.words[index];
    const item = ([word, nats]) => make('li', `${word || 'end'} ${percent(Math.exp(nats))}`);
    const itself = item([text && `“${text}”`, log_prob]);
    this.find('.rivals').replaceChildren(itself, make('li', 'instead:'), ...rivals.map(item));
    this.tellMap();
  }

  step(event) {  // from word to word
    const to = { ArrowRight: this.word + 1, ArrowLeft: this.word - 1, Home: 0, End: Infinity };
    if (!(event.key in to)) return;
    event.preventDefault();
    const buttons = this.find('.caption').querySelectorAll('button');
    buttons[Math.max(0, Math.min(to[event.key], buttons.length - 1))].focus();
  }

  async copy() {
    await navigator.clipboard.writeText(this.caption.text).then(
      () => say(`Copied: ${this.caption.text}`),
      () => say('The browser does not allow to copy: select the caption instead.'));
  }

  // ------------------------------------------------------------------- what each word saw

  async explain() {
    const button = this.find('.explain'), { tokens } = this.caption;
    button.disabled = true;
    say('Hiding the parts of the picture one by one …');
    try {
      this.showMaps(await (await ask('maps', { tokens }, this.file)).json());
      say('The map of a word is on the picture. Choose another word for its map.');
    } catch (error) {
      say(error.message);
    }
    button.disabled = false;
  }

  showMaps(maps) {
    this.maps = maps;
    this.find('canvas').hidden = this.find('.legend').hidden = !maps;
    this.find('.picture').classList.toggle('mapped', !!maps);
    this.find('.explain').setAttribute('aria-pressed', !!maps);
    if (!maps) return;
    // One scale for all words; one finer than half a nat would paint what nobody needs to know.
    this.most = Math.max(.5, ...maps.maps.flat(2).map(Math.abs));
    const needs = maps.maps.map(map => Math.max(...map.flat()));
    this.select(needs.indexOf(Math.max(...needs)));  // the word with most to show
  }

  get map() { return this.maps.maps[this.word]; }  // (G, G) nats

  tellMap(row = null, column = null) {
    if (!this.maps) return;
    const canvas = this.find('canvas'), side = this.map.length, context = canvas.getContext('2d');
    canvas.width = canvas.height = side;
    this.map.forEach((cells, y) => cells.forEach((fall, x) => {
      context.fillStyle = `rgb(${fall > 0 ? FALLS : RISES} / ${.85 * Math.abs(fall) / this.most})`;
      context.fillRect(x, y, 1, 1);
    }));
    const word = this.caption.words[this.word].text || 'end';
    const change = fall => `${nats(Math.abs(fall))} nats ${fall < 0 ? 'more' : 'less'} likely`;
    const fall = row === null ? Math.max(...this.map.flat()) : this.map[row][column];
    const where = row === null ? 'the part it needs most' : 'this part';
    const text = `“${word}” is ${change(fall)} with ${where} hidden, ` +
      `${change(this.maps.dependence[this.word])} with the whole picture hidden.`;
    this.find('.legend .about').textContent = canvas.ariaLabel = text;
    for (const end of this.find('.legend').querySelectorAll('.most')) {
      end.textContent = nats(this.most);
    }
  }

  readMap({ offsetX, offsetY, target }) {
    const cell = (at, length) =>
      Math.max(0, Math.min(Math.floor(at / length * this.map.length), this.map.length - 1));
    this.tellMap(cell(offsetY, target.clientHeight), cell(offsetX, target.clientWidth));
  }
}

// ------------------------------------------------------------------------------- all pictures

const isValid = () => form.reportValidity() || say('A setting is out of its range.');

function add(files, name = file => file.name) {
  if (!files.length) return say('That was no picture file: save the picture first.');
  if (!isValid()) return;
  const added = files.map(file => new Card(file, name(file)));
  cards.push(...added);
  list.prepend(...added.map(card => card.element));
  queue(added);
}

async function queue(added) {
  const asked = Object.fromEntries(new FormData(form));
  waiting.push(...added.map(card => [card, asked]));
  for (const card of added) card.element.ariaBusy = true;
  if (isWorking) return;
  isWorking = true;
  let done = 0, failed = 0;
  while (waiting.length) {
    if (waiting.length + done > 1) say(`${done} of ${waiting.length + done} described`);
    const [card, settings] = waiting.shift();
    update();
    await card.describe(settings);
    done += 1;
    failed += !card.answer;
    if (done == 1 && cards.length) say(`${card.name}: ${card.answer?.captions[0].text ?? card.find('.note').textContent}`);
  }
  if (done > 1 && cards.length) say(`${done - failed} described${failed ? `, ${failed} not` : ''}`);
  isWorking = false;
  update();
}

function update() {
  $('stop').hidden = !waiting.length;
  $('clear').hidden = !cards.length;
  $('empty').hidden = cards.length > 0;
  $('save').hidden = $('key').hidden = !cards.some(card => card.answer);
}

function stop() {
  for (const [card] of waiting) {
    card.note('stopped');
    card.element.ariaBusy = false;
  }
  waiting = [];
  stopper.abort();
  stopper = new AbortController();
}

function clear() {
  stop();
  for (const card of cards.splice(0)) URL.revokeObjectURL(card.find('img').src);
  list.replaceChildren();
  say('');
  update();
}

function csv() {  // the columns of predict.py --output captions.csv
  const rounded = number => number === null ? '' : Math.round(number * 1e4) / 1e4;
  const rows = cards.flatMap(({ name, answer }) => (answer?.captions ?? []).map((caption, i) => [
    name, i + 1, caption.text, rounded(caption.log_prob), rounded(caption.log_prob_per_word),
    rounded(answer.familiarity)]));
  rows.unshift(['image', 'rank', 'caption', 'log_prob', 'log_prob_per_word', 'familiarity']);
  const quoted = value => /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  return rows.map(row => row.map(quoted).join(',') + '\r\n').join('');
}

function save() {
  const url = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }));
  make('a', '', { href: url, download: 'captions.csv' }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// ------------------------------------------------------------------------------- ways to give

$('files').onchange = ({ target }) => { add([...target.files]); target.value = ''; };
document.addEventListener('paste', ({ clipboardData }) => {
  const files = [...clipboardData.files];
  if (files.length) add(files, () => `pasted picture ${++given.pasted}`);
});
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    $('drop').classList.toggle('over', kind.startsWith('drag') && kind != 'dragleave');
    if (kind == 'drop') add([...event.dataTransfer.files]);
  });
}

$('camera').onclick = async () => {
  try {
    const video = { facingMode: 'environment', width: { ideal: 1280 } };
    $('shoot').disabled = true;  // until there is something to see
    $('video').srcObject = await navigator.mediaDevices.getUserMedia({ video });
    dialog.showModal();
  } catch {
    say('No camera that may be used: allow it in the browser, or choose a picture.');
  }
};
$('video').onloadedmetadata = () => { $('shoot').disabled = false; };
$('shoot').onclick = () => {
  const canvas = document.createElement('canvas'), video = $('video');
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext('2d').drawImage(video, 0, 0);
  canvas.toBlob(blob => add([blob], () => `camera ${++given.camera}`), 'image/jpeg', .92);
  dialog.close();
};
$('close-camera').onclick = () => dialog.close();
dialog.onclose = () => {
  for (const track of $('video').srcObject.getTracks()) track.stop();
};

$('stop').onclick = stop;
$('clear').onclick = clear;
$('save').onclick = save;

// ------------------------------------------------------------------------------- what is there

for (const [name, [least, most]] of Object.entries(about.limits)) {
  Object.assign(form[name], { min: least, max: most, value: about.defaults[name], required: true });
}
form.onsubmit = event => event.preventDefault();
form.oninput = () => { form.beam_size.disabled = form.temperature.value > 0; };
form.oninput();

$('samples').append(...about.samples.map((alt, i) => {
  const item = document.createElement('li'), button = make('button', '', { type: 'button' });
  const image = make('img', '', { src: `samples/${i}.png`, alt, width: 80, height: 80 });
  button.append(image);
  button.onclick = async () =>
    add([await (await fetch(image.src)).blob()], () => `drawn scene ${i + 1}`);
  item.append(button);
  return item;
}));

// The model card's little Markdown: paragraphs, **headings** in them, and a table.
for (const card of about.cards) {
  for (const block of card.trim().split(/\n\n+/).slice(1)) {
    const rows = block.split('\n').filter(row => row.startsWith('|') && !/^\|[-|]+$/.test(row));
    if (rows.length) {
      const table = document.createElement('table');
      for (const row of rows.slice(1)) {
        const [name, value] = row.split('|').slice(1).map(text => text.trim());
        table.insertRow().append(make('th', name, { scope: 'row' }), make('td', value));
      }
      $('model-cards').append(table);
    } else {
      const [, heading, text] = block.match(/^\*\*(.+?)\*\*([^]*)$/) ?? [, '', block];
      const paragraph = make('p', '');
      paragraph.append(make('strong', heading), text);
      $('model-cards').append(paragraph);
    }
  }
}
