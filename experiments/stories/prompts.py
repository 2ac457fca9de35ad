"""Story prompts drawn from a small grammar: a request, and the first words of the answer.

The opening is put into the model's mouth: it fixes the names and the style, leaves no room for
"Sure, here is a story", and varies how stories begin, which sampling alone does not.
"""

import random
import re
from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


GIRLS = _words(
    "Lily, Anna, Mia, Sue, Rose, Emma, Lucy, Ella, Jane, Kate, Amy, Nora, Zoe, Ruby, Molly, "
    "Daisy, Clara, Ivy, Tina, Meg, Sara, Bella, Polly, May"
)
BOYS = _words(
    "Tom, Ben, Sam, Max, Jack, Tim, Leo, Dan, Bob, Finn, Joe, Will, Adam, Luke, Peter, Billy, "
    "Oscar, Henry, Nick, Theo, Paul, Jim, Fred, Ted"
)
ANIMALS = _words(
    "dog, cat, rabbit, fox, bear, mouse, duck, bird, frog, turtle, pig, cow, horse, goat, sheep, "
    "squirrel, owl, hen, fish, bee, hedgehog, monkey, elephant, lion, kitten, puppy, penguin, "
    "snail, donkey, butterfly"
)
PETS = _words("dog, cat, puppy, kitten, rabbit, duck, bird, hamster, pony, fish, goat, hen")
FAMILY = _words(
    "mother, father, mom, dad, grandma, grandpa, sister, brother, friend, cousin, uncle, aunt"
)
OBJECTS = _words(
    "ball, red balloon, kite, boat, hat, box, key, doll, toy car, toy train, book, drum, bell, "
    "bike, blanket, cake, cookie, apple, flower, basket, shoe, coat, cup, spoon, lamp, stone, "
    "shell, feather, leaf, stick, rope, ladder, umbrella, map, letter, picture, puzzle, ring, "
    "button, bucket, pie, egg, seed, star, bag, candle, teddy bear, pumpkin, scarf, whistle, "
    "carrot, jar of honey, snowman, sand castle, tree house, swing"
)
PLACES = _words(
    "park, garden, forest, beach, farm, school, market, river, lake, hill, zoo, kitchen, barn, "
    "playground, library, woods, pond, shop, train station, big field, mountain, town, meadow, "
    "bakery, toy store, old house, sea, island, cave, bridge"
)
COLORS = _words("red, blue, green, yellow, white, black, brown, gray, orange, pink, purple")
SIZES = _words("little, big, small, tiny, tall, young, old, brown")
TRAITS = _words(
    "happy, sad, shy, brave, kind, curious, lazy, silly, funny, clever, hungry, lonely, tired, "
    "proud"
)
WEATHER = _words(
    "sunny, rainy, cold, warm, windy, snowy, hot, cloudy, lovely spring, quiet summer, bright "
    "winter"
)
FEELINGS = _words(
    "happy, sad, angry, scared, excited, worried, bored, surprised, lonely, tired, hungry"
)
WISHES = _words(
    "to play, to fly, to swim, to find a friend, to bake a cake, to go home, to help, to sing, to "
    "see the sea, to climb the tall tree, to learn to read, to build a house, to have a party, to "
    "go fast, to find some food, to see the moon, to jump very high, to sleep, to share a snack, "
    "to be brave"
)
THEMES = _words(
    "sharing with others, telling the truth, being brave, helping a friend, saying sorry, not "
    "giving up, being kind, listening to parents, making a new friend, losing and finding "
    "something, a small surprise, a storm that passes, a birthday, learning something new, being "
    "patient, working together, taking care of a pet, getting lost and coming home, a broken toy, "
    "trying new food, a funny mistake, sleeping in the dark, a race, a gift, cleaning up, "
    "planting a seed, being different, saying thank you, a lost animal, waiting for your turn"
)

OPENINGS = (
    "Once upon a time, there was a {size} {animal} named {name}. {He} lived near the {place}.",
    "Once upon a time, there was a {trait} {child} named {name}. {He} had a {color} {object}.",
    "Once upon a time, a {trait} {animal} lived in the {place}.",
    "Once upon a time, in a {size} house near the {place}, there lived a {child} named {name}.",
    "One day, {name} went to the {place} with {his} {family}.",
    "One day, a {size} {animal} found a {object} near the {place}.",
    "One {weather} day, {name} and {friend} played in the {place}.",
    "One {weather} morning, {name} woke up and felt very {feeling}.",
    "{name} was a {trait} {animal}. {He} wanted {wish}.",
    "{name} was a {size} {child} who loved {his} {object}.",
    "{name} and {his} {family} went to the {place}.",
    "{name} and {friend} were best friends. They liked to go to the {place}.",
    "{name} had a {pet}. The {pet} was very {trait}.",
    "{name} had a {color} {object}. {He} took it to the {place}.",
    "{name} saw a {size} {color} {object} in the {place}.",
    "{name} wanted {wish}, but {he} was too {trait}.",
    "{name} was {feeling}. {He} could not find {his} {object}.",
    "The {size} {animal} was {feeling}. It wanted {wish}.",
    "The {animal} and the {animal2} lived by the {place}.",
    "The {size} {animal} ran to the {place}.",
    "The {pet} looked at {name}.",
    "A {size} {animal} sat in the {place}. It had a {object}.",
    "A {trait} {child} named {name} lived near the {place} with {his} {family}.",
    "In the {place}, there was a {size} {color} {object}.",
    "It was a {weather} day. {name} wanted {wish}.",
    "It was {name}'s birthday. {His} {family} gave {him} a {object}.",
    "It was night. {name} could not sleep.",
    '"Look!" said {name}. "There is a {animal} in the {place}!"',
    '"Can we go to the {place}?" {name} asked {his} {family}.',
    '"I am {feeling}," said the {size} {animal}.',
    "Every day, {name} walked to the {place} with {his} {pet}.",
    "One {weather} day, the {animal} lost its {object}.",
    "There was a {color} {object} under the tree. {name} picked it up.",
    "Long ago, a {trait} {animal} and a {trait2} {animal2} lived in the {place}.",
    "When {name} came home, {he} saw a {size} {animal} at the door.",
    "My name is {name}. I am a {trait} {animal}.",
    "{name}'s {family} had a {object}. It was very {size}.",
    "{name} liked {wish}. One {weather} day,",
    "The {size} {animal}",
    "{name} and {his} {family}",
    "The {child} looked at the {object} and",
)
REQUESTS = (
    "Write a story for young children about {theme}.",
    "Write a simple story about {theme}.",
    "Tell me a bedtime story about {theme}.",
    "Tell a happy story about {theme}.",
    "Write a story for small children.",
    "Tell me a bedtime story.",
)
SYSTEM = "You write short, simple stories for young children."
EXAMPLES = (
    "Sam was a small mole. He lived under the ground with his mom. One day, Sam dug a long tunnel. "
    "He dug and dug. Then he came out on top of a hill and saw the sun.\n"
    '"Oh!" said Sam. "It is so bright!"\n'
    'He ran back to his mom. "Mom, come and see!" he said. They sat on the hill together and felt '
    "the warm sun on their noses. At night, the sun went down and the stars came out. Sam was "
    "tired. His mom gave him a hug, and they went home to sleep.",
    "Grace had a new bowl. It was blue and shiny, and she loved it very much. One morning, the "
    "bowl fell off the table and broke.\n"
    '"I am sorry," said her little brother. "I bumped the table."\n'
    'Grace wanted to cry, but she saw that her brother was sad too. "It is okay," she said. "We '
    'can fix it."\n'
    "They found some glue and put the pieces back together. The bowl had a few lines on it now. "
    "Grace put a plant in it and set it by the window. It looked even better than before.",
    "One day, a lamb could not find her bell. She looked behind the fence. She looked in the tall "
    "grass. It was not there.\n"
    'A crow flew down and asked, "Why do you look so sad?"\n'
    '"My bell is gone," said the lamb.\n'
    "The crow had sharp eyes. He flew up high and looked all around. Then he saw something shine "
    'in the water. He picked it up and gave it to the lamb. "Thank you!" said the lamb. She shared '
    "her clover with the crow, and from then on they were friends.",
    "It was a windy afternoon. Dad took Carl to the top of the road with a paper plane. Carl threw "
    "the plane, but it fell down. He threw it again, and it fell down again.\n"
    '"I can\'t do it," said Carl.\n'
    '"Try once more," said Dad. "Hold it up high."\n'
    "Carl held the plane up high and waited. When the wind came, he let go. The plane went up, up, "
    "up, over the roof and over the trees. Carl laughed and clapped his hands. Dad was very proud.",
    "There once was a wolf who was afraid of the dark. Every night he hid under a big root and "
    "closed his eyes. One night he heard a small voice. It was a firefly.\n"
    '"Please help me," said the firefly. "I lost my way."\n'
    "The wolf wanted to help. He walked through the dark with the firefly on his head, and her "
    "tiny light showed them the path. Soon they found her family. All the fireflies danced "
    "around the wolf. He looked up and smiled. The dark was not so bad after all.",
)


class StoryPrompt(NamedTuple):
    """What the writer is asked for, how it must begin, and an example that shows the style."""

    example: str
    request: str
    opening: str

    def chat(self) -> str:
        """The prompt in SmolLM2's chat format, ending inside the answer."""
        return (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
            f"<|im_start|>user\nWrite a story for young children.<|im_end|>\n"
            f"<|im_start|>assistant\n{self.example}<|im_end|>\n"
            f"<|im_start|>user\n{self.request}<|im_end|>\n"
            f"<|im_start|>assistant\n{self.opening}"
        )


def draw_prompt(rng: random.Random) -> StoryPrompt:
    """One random prompt; pronouns agree with the name."""
    child = rng.choice(("girl", "boy"))
    girl = child == "girl"
    name, friend = rng.sample(GIRLS if girl else BOYS, 1)[0], rng.choice(GIRLS + BOYS)
    animal, animal2 = rng.sample(ANIMALS, 2)
    trait, trait2 = rng.sample(TRAITS, 2)
    words = {
        "name": name,
        "friend": friend if friend != name else "Kim",
        "child": child,
        "he": "she" if girl else "he",
        "He": "She" if girl else "He",
        "his": "her" if girl else "his",
        "His": "Her" if girl else "His",
        "him": "her" if girl else "him",
        "animal": animal,
        "animal2": animal2,
        "pet": rng.choice(PETS),
        "family": rng.choice(FAMILY),
        "object": rng.choice(OBJECTS),
        "place": rng.choice(PLACES),
        "color": rng.choice(COLORS),
        "size": rng.choice(SIZES),
        "trait": trait,
        "trait2": trait2,
        "weather": rng.choice(WEATHER),
        "feeling": rng.choice(FEELINGS),
        "wish": rng.choice(WISHES),
        "theme": rng.choice(THEMES),
    }
    request = _with_articles(rng.choice(REQUESTS).format_map(words))
    opening = _with_articles(rng.choice(OPENINGS).format_map(words))
    return StoryPrompt(rng.choice(EXAMPLES), request, opening)


def _with_articles(text: str) -> str:
    """`a` before a vowel becomes `an`."""
    return re.sub(r"\b([Aa])(?= [aeio])", r"\1n", text)
