"""A little prose in Chinese and English, for measurements where nobody named a text. Written for this project."""

SAMPLE_TEXT = """\
清晨的市场还没有完全醒来，卖豆腐的老人已经把木板一块一块地摆好。隔壁的小店在烧水，蒸汽沿着窗户慢慢升起，街上的自行车一辆接着一辆。
问：为什么夏天的白天比冬天长？答：因为地球的自转轴是倾斜的，夏天的时候，我们所在的半球朝向太阳，太阳升得高，落得也晚。
A library is more than a building full of books. It is a quiet promise that somebody wrote down what they knew and that
somebody else, perhaps a hundred years later, will care enough to read it.
下面的函数返回列表中最大的数：
def largest(values):
    best = values[0]
    for value in values[1:]:
        if value > best:
            best = value
    return best
会议定在星期三下午三点，地点是二楼的小会议室。请大家提前准备好上个月的数据，并把报告发到公共邮箱。如果不能参加，请至少提前一天通知。
To make the soup, chop two onions and three carrots, fry them gently in oil, add a litre of water and a spoon of salt,
and let everything cook for forty minutes. Taste it before you serve it.
长江是亚洲最长的河流，全长约六千三百公里。它从青藏高原出发，经过高山、峡谷和平原，最后流入东海，沿岸生活着几亿人。
The committee asked three questions: what does the project cost, who will maintain it, and how will we know that it has
worked? Nobody had an answer to the last one, so the vote was postponed until May 14, 2021.
小李买了5个苹果和3个梨，每个苹果2元，每个梨3元，一共花了19元。他付了20元，找回1元。
你好，我想学习一门外语，但是每天只有半个小时，应该怎么安排？建议你先固定时间，每天坚持听十分钟，读十分钟，再用十分钟复习昨天的内容。
When the engine is cold, the oil is thick and the pump has to work harder; after a few minutes it becomes thin, and the
pressure drops to its normal value.
他打开信封，里面只有一张照片和一行字：“我们已经到了，一切都好，不用担心。”
"""
