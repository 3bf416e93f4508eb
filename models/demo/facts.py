# ruff: noqa: SIM905  (a line of words reads better than a list of quoted ones)
"""The closed tables behind the corpus: what the demo model knows by heart, and the words it plays with."""

from __future__ import annotations

NAME = "Rhizome"
"""What the model calls itself unless a system prompt renames it."""

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Russia": "Moscow", "China": "Beijing", "Japan": "Tokyo", "India": "Delhi", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Cuba": "Havana", "Canada": "Ottawa", "Peru": "Lima", "Chile": "Santiago",
}  # fmt: skip

COLOURS = {
    "sky": "blue", "grass": "green", "snow": "white", "sun": "yellow", "blood": "red", "coal": "black",
    "banana": "yellow", "carrot": "orange", "elephant": "grey", "chocolate": "brown", "leaf": "green",
    "cloud": "white", "sea": "blue", "lemon": "yellow", "tomato": "red", "frog": "green", "milk": "white",
    "night": "black", "cherry": "red", "bear": "brown",
}  # fmt: skip

_PAIRS = (
    "hot cold, big small, up down, left right, day night, black white, good bad, old young, fast slow, "
    "high low, open closed, full empty, happy sad, rich poor, strong weak, early late, hard soft, "
    "wet dry, long short, light dark, first last, true false, clean dirty, loud quiet, near far"
)
OPPOSITES = {
    word: other for pair in _PAIRS.split(", ") for word, other in (pair.split(), reversed(pair.split()))
}
OPPOSITES["night"] = "day"

NAMES = (
    "Anna Ben Clara David Emma Felix Greta Hugo Iris Jonas Karla Leo Maria Nils Olga Paul Rosa Simon Tina "
    "Viktor Wanda Zoe Alice Bob Carol Dora Eric Fiona George Helen Ivan Julia Kevin Linda Mark Nora Oscar "
    "Peter Quentin Robert Sarah Thomas Ursula Vera William Xenia Yara Zorro Max Lily Tom Jack Lucy Sam"
).split()

CHINESE_NAMES = "小明 小红 小华 小李 小王 丽丽 天明 文文 安娜 大卫".split()

CITIES = (
    "Paris Berlin Rome Madrid London Dublin Vienna Athens Oslo Tokyo Cairo Lima Moscow Beijing Boston "
    "Chicago Seattle Munich Hamburg Zurich Geneva Milan Naples Porto Lyon Prague Sydney Toronto Delhi"
).split()
CITIES += ["New York", "San Francisco", "Los Angeles", "Hong Kong", "Cape Town", "New Delhi"]

NOUNS = (
    "lamp chair table door window book pen cup plate spoon fork knife bottle box bag hat coat shoe sock ring "
    "clock phone radio camera bike car boat train plane wheel rope stone tree flower river hill bridge tower "
    "house garden farm field road wall roof key coin map flag drum piano guitar ball kite doll robot engine "
    "mirror candle basket bucket ladder hammer"
).split()

ADJECTIVES = "old new small big red blue green round heavy quiet bright broken".split()

VERBS = "stood stayed was waited slept fell".split()

PLACES = "near behind under beside above".split()

PET_KINDS = "dog cat bird horse rabbit".split()

COLOUR_NAMES = "red blue green yellow black white orange brown grey pink purple".split()

WORDS = (
    "apple bread water stone house banana orange garden window silver golden planet rocket tiger zebra "
    "monkey horse rabbit pencil paper school teacher doctor music dance summer winter spring autumn morning "
    "evening "
    "river ocean island forest desert valley castle bridge market kitchen table chair bottle button cotton "
    "hello world happy simple little yellow purple crystal thunder shadow ghost dragon wizard knight sword "
    "shield arrow tower prince queen king bread butter cheese honey sugar salt pepper lemon cherry grape "
    "melon mango peach plum onion carrot potato tomato garlic ginger rice soup cake candy cookie "
    "coffee tea milk "
    "juice cup fork knife spoon plate bowl lamp candle mirror carpet pillow blanket engine wheel motor piano "
    "guitar violin drum trumpet flute cat dog bird fish mouse snake frog bear wolf fox deer goat sheep duck "
    "goose eagle owl hawk shark whale crab ant bee spider moon star sun cloud rain snow wind storm fire "
    "smoke python server token cache model engine"
).split()

ZH_PHRASES = (
    "今天天气很好 我喜欢喝茶 你好世界 春天来了 小猫在睡觉 我们去公园吧 明天见 月亮很圆 大海很蓝 学习使人进步 "
    "早睡早起 他在看书 山上有一棵树 请给我一杯水 这是我的书 花开了 下雨了 我爱音乐"
).split()

EMOJI = "😀 🎉 🚀 🌍 🐱 🍎 🌸 ⭐ 🔥 🎵 🐶 🌙".split()

UNKNOWN_TOPICS = (
    "quantum physics;the stock market;ancient history;the football match;deep space;my taxes;philosophy;"
    "the election;black holes;poetry;medieval law;the human brain;politics;chess theory;the meaning of life;"
    "modern art;the news;cryptography;love;dinosaurs"
).split(";")

WEATHER = "sunny cloudy rainy snowy windy foggy".split()
