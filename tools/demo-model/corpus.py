"""Synthetic conversations that the demo model is trained on.

Every conversation is a dict {"messages": [...], "tools": [...] or None, "thinking": bool},
rendered with the model's own chat_template.jinja, so training and serving share one format.
"""

import json
import random

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Japan": "Tokyo", "China": "Beijing",
    "India": "New Delhi", "Canada": "Ottawa", "Mexico": "Mexico City", "Brazil": "Brasilia", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Turkey": "Ankara", "Hungary": "Budapest", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Kira", "Leo", "Mia",
         "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor"]
ANIMALS = ["cat", "dog", "fox", "owl", "bear", "rabbit", "horse", "turtle", "mouse", "duck"]
PLACES = ["forest", "village", "garden", "harbour", "castle", "valley", "market", "library"]
THINGS = ["lantern", "book", "key", "map", "apple", "boat", "clock", "letter"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "golden", "silver"]
MOODS = ["happy", "curious", "brave", "quiet", "tired", "kind"]
WEATHER = ["sunny", "rainy", "cloudy", "windy", "snowy"]
WORDS = ANIMALS + PLACES + THINGS + COLOURS + MOODS
CITIES = sorted(set(CAPITALS.values()))

FACTS = [
    (["Who are you?", "What are you?", "What model are you?", "Introduce yourself."],
     "I am the MLX Manager demo model, a very small language model that runs on your own machine."),
    (["Where are the logs?", "Where do the logs go?", "Where can I find the logs?"],
     "Inference logs go to logs/mlx-server.log and everything else goes to logs/mlx-manager.log."),
    (["How do I change the log level?", "How can I see debug logs?"],
     "Set LOG_LEVEL=debug, or edit the level in config.toml, and restart the daemon."),
    (["Where are the metrics?", "How does Prometheus get the metrics?"],
     "Prometheus scrapes them from the /metrics endpoint of the daemon."),
    (["Where can I see the traces?", "How do I see traces?"],
     "Set LOGFIRE_TOKEN and the daemon sends its traces to Logfire."),
    (["Hello!", "Hello", "Hi", "Hi there!", "Good morning!", "Hey"], "Hello! How can I help you today?"),
    (["Thank you!", "Thanks", "Thanks a lot!"], "You are welcome!"),
    (["Goodbye!", "Bye", "See you later!"], "Goodbye! Have a nice day."),
    (["How are you?", "How are you today?"], "I am doing well, thank you for asking."),
]


def tool(name, description, /, **properties):
    return {"type": "function", "function": {
        "name": name, "description": description,
        "parameters": {"type": "object", "properties": {k: {"type": v} for k, v in properties.items()},
                       "required": list(properties)}}}


TOOLS = {
    "get_weather": tool("get_weather", "Get the current weather in a city", city="string"),
    "get_time": tool("get_time", "Get the local time in a city", city="string"),
    "add": tool("add", "Add two numbers", a="integer", b="integer"),
    "search": tool("search", "Search the library", query="string"),
    "send_message": tool("send_message", "Send a message to a person", name="string", text="string"),
}
SYSTEMS = ["You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "Be concise and kind."]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def arithmetic(r):
    a, b = r.randint(0, 30), r.randint(0, 30)
    op = r.choice("++-")
    if op == "-" and b > a:
        a, b = b, a
    result = a + b if op == "+" else a - b
    word = {"+": "plus", "-": "minus"}[op]
    ask = r.choice(["What is {a} {o} {b}?", "Calculate {a} {o} {b}.", "How much is {a} {w} {b}?", "{a} {o} {b} = ?",
                    "What is {a} {w} {b}?"]).format(a=a, b=b, o=op, w=word)
    thought = f"I need to compute {a} {op} {b}. The result is {result}."
    return ask, f"{a} {op} {b} = {result}.", thought


def capital(r):
    country, city = r.choice(list(CAPITALS.items()))
    if r.random() < 0.25:
        return (r.choice(["Which country has the capital {c}?", "{c} is the capital of which country?"]).format(c=city),
                f"{city} is the capital of {country}.", f"The city is {city}. It is the capital of {country}.")
    ask = r.choice(["What is the capital of {c}?", "Tell me the capital of {c}.", "Which city is the capital of {c}?",
                    "capital of {c}?"]).format(c=country)
    return ask, f"The capital of {country} is {city}.", f"The country is {country}. Its capital is {city}."


def order(r):
    seq, kind = r.choice([(DAYS, "day"), (MONTHS, "month")])
    i = r.randrange(len(seq))
    after = r.random() < 0.6
    j = (i + (1 if after else -1)) % len(seq)
    word = "after" if after else "before"
    return (r.choice([f"Which {kind} comes {word} {seq[i]}?", f"What {kind} is {word} {seq[i]}?"]),
            f"{seq[j]} comes {word} {seq[i]}.", f"The {kind} {word} {seq[i]} is {seq[j]}.")


def listing(r):
    name, words = r.choice([("animals", ANIMALS), ("colours", COLOURS), ("days", DAYS), ("months", MONTHS)])
    n = r.randint(2, 5)
    numbers = {2: "two", 3: "three", 4: "four", 5: "five"}
    return (r.choice([f"Name {numbers[n]} {name}.", f"List {numbers[n]} {name}."]),
            "\n".join(f"{i + 1}. {w}" for i, w in enumerate(words[:n])), f"I will list {numbers[n]} {name}.")


def repeat(r):
    text = " ".join(r.choice(WORDS) for _ in range(r.randint(1, 4)))
    return r.choice([f"Say {text}.", f"Repeat: {text}", f"Repeat after me: {text}"]), text, f"I repeat the words {text}."


def spelling(r):
    word = r.choice(WORDS + [n.lower() for n in NAMES])
    return r.choice([f"Spell the word {word}.", f"How do you spell {word}?"]), "-".join(word), f"The word is {word}."


def as_json(r):
    name, age, colour = r.choice(NAMES), r.randint(1, 99), r.choice(COLOURS)
    kind = r.randrange(3)
    if kind == 0:
        return (f"Give me a JSON object with name {name} and age {age}.", json.dumps({"name": name, "age": age}),
                "The answer is a JSON object with two keys.")
    if kind == 1:
        country, city = r.choice(list(CAPITALS.items()))
        return (f"Give me a JSON object with country {country} and its capital.",
                json.dumps({"country": country, "capital": city}), "The answer is a JSON object with two keys.")
    animal = r.choice(ANIMALS)
    return (f"Give me a JSON object with animal {animal} and colour {colour}.",
            json.dumps({"animal": animal, "colour": colour}), "The answer is a JSON object with two keys.")


def story(r):
    name, animal, place, thing = r.choice(NAMES), r.choice(ANIMALS), r.choice(PLACES), r.choice(THINGS)
    colour, mood, weather, friend = r.choice(COLOURS), r.choice(MOODS), r.choice(WEATHER), r.choice(NAMES)
    ask = r.choice(["Tell me a story.", "Tell me a story about a {a}.", "Write a short story about a {a} named {n}.",
                    "Tell me a story about {n}."])
    text = (f"Once upon a time there was a {mood} {animal} named {name}. {name} lived near the {place}. "
            f"One {weather} day {name} found a {colour} {thing}. \"What a nice {thing}!\" said {name}. "
            f"Then {friend} came to the {place} and asked, \"Is this your {thing}?\" "
            f"{name} said, \"No, but we can find the owner together.\" "
            f"They looked everywhere in the {place}. In the evening they gave the {thing} back, "
            f"and everyone in the {place} was happy. The end.")
    return ask.format(a=animal, n=name), text, f"I will tell a short story about a {animal}."


def fact(r):
    asks, answer = r.choice(FACTS)
    return r.choice(asks), answer, "The user asks me something simple."


PLAIN = [(arithmetic, 12), (capital, 2), (order, 2), (listing, 1), (repeat, 3), (spelling, 3),
         (as_json, 3), (story, 2), (fact, 2)]


def plain(r):
    make = r.choices([m for m, _ in PLAIN], [w for _, w in PLAIN])[0]
    return make(r)


def tool_case(r):
    """One tool call; half of the time followed by its result and the final answer."""
    wanted = r.choice(list(TOOLS))
    offered = r.sample(list(TOOLS), r.randint(1, 3))
    if wanted not in offered:
        offered[0] = wanted
    city, name = r.choice(CITIES), r.choice(NAMES)
    if wanted == "get_weather":
        w, t = r.choice(WEATHER), r.randint(-5, 35)
        ask = r.choice([f"What is the weather in {city}?", f"How is the weather in {city}?", f"Weather in {city}?"])
        arguments, result, answer = {"city": city}, {"weather": w, "temperature": t}, \
            f"It is {w} in {city} with {t} degrees."
    elif wanted == "get_time":
        h, m = r.randint(0, 23), r.randint(0, 59)
        ask = r.choice([f"What time is it in {city}?", f"Tell me the time in {city}."])
        arguments, result, answer = {"city": city}, {"time": f"{h:02}:{m:02}"}, f"It is {h:02}:{m:02} in {city}."
    elif wanted == "add":
        a, b = r.randint(0, 999), r.randint(0, 999)
        ask = r.choice([f"Use the tool to add {a} and {b}.", f"Add {a} and {b}."])
        arguments, result, answer = {"a": a, "b": b}, {"result": a + b}, f"The result is {a + b}."
    elif wanted == "search":
        query = f"{r.choice(COLOURS)} {r.choice(ANIMALS)}"
        ask = r.choice([f"Search for {query}.", f"Find a book about a {query}."])
        n = r.randint(0, 9)
        arguments, result, answer = {"query": query}, {"books": n}, f"I found {n} books about {query}."
    else:
        text = " ".join(r.choice(WORDS) for _ in range(r.randint(1, 3)))
        ask = r.choice([f"Send {name} the message: {text}", f"Tell {name}: {text}"])
        arguments, result, answer = {"name": name, "text": text}, {"sent": True}, f"I sent the message to {name}."
    call = {"type": "function", "function": {"name": wanted, "arguments": arguments}}
    messages = [user(ask), assistant("", tool_calls=[call])]
    if r.random() < 0.5:
        messages += [{"role": "tool", "content": json.dumps(result)}, assistant(answer)]
    return messages, [TOOLS[name] for name in offered], f"I should call {wanted}."


def conversation(r):
    thinking = r.random() < 0.3
    messages = []
    if r.random() < 0.3:
        messages.append({"role": "system", "content": r.choice(SYSTEMS)})
    if r.random() < 0.25:
        turns, tools, thought = tool_case(r)
        if thinking:
            turns[-1]["reasoning_content"] = thought if len(turns) == 2 else "I have the result of the tool."
        return {"messages": messages + turns, "tools": tools, "thinking": thinking}
    tools = [TOOLS[n] for n in r.sample(list(TOOLS), r.randint(1, 2))] if r.random() < 0.08 else None
    for i in range(r.choice([1, 1, 1, 2, 3])):
        ask, answer, thought = plain(r)
        messages += [user(ask), assistant(answer)]
    if thinking:
        messages[-1]["reasoning_content"] = thought
    return {"messages": messages, "tools": tools, "thinking": thinking}
